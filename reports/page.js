(function () {
  "use strict";
  var specs = JSON.parse(document.getElementById("figures").textContent);
  var config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"] };
  // A touch screen has no hover: there the tool bar would cover the legend for good.
  if (!window.matchMedia("(hover: hover)").matches) { config.displayModeBar = false; }
  function ink(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
  function colours() {
    return { "font.color": ink("--ink"), "hoverlabel.bgcolor": ink("--paper"), "hoverlabel.bordercolor": ink("--rule"), "hoverlabel.font.color": ink("--ink") };
  }
  Object.keys(specs).forEach(function (id) {
    var layout = specs[id].layout, c = colours();
    layout.font.color = c["font.color"];
    layout.hoverlabel = Object.assign({}, layout.hoverlabel, { bgcolor: c["hoverlabel.bgcolor"], bordercolor: c["hoverlabel.bordercolor"] });
    layout.hoverlabel.font = Object.assign({}, layout.hoverlabel.font, { color: c["font.color"] });
    Plotly.newPlot(id, specs[id].data, layout, config);
  });
  function repaint() {
    Object.keys(specs).forEach(function (id) { Plotly.relayout(id, colours()); });
  }
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("details").forEach(function (d) { d.open = true; });
    repaint();
  });
  function quoted(text) {
    // A cell that a spreadsheet would run as a formula is made text.
    if (/^[=+@\t]/.test(text) || (/^-/.test(text) && isNaN(Number(text)))) { text = "'" + text; }
    return '"' + text.replace(/"/g, '""') + '"';
  }
  function csv(table) {
    var heads = table.tHead.rows[0].cells, lines = [], head = [], i;
    for (i = 0; i < heads.length; i++) {
      var name = heads[i].querySelector(".h").textContent;
      head.push(quoted(name));
      if (heads[i].classList.contains("num")) { ["low", "high", "origin"].forEach(function (x) { head.push(quoted(name + " " + x)); }); }
    }
    lines.push(head.join(","));
    Array.prototype.forEach.call(table.tBodies[0].rows, function (row) {
      var line = [];
      Array.prototype.forEach.call(row.cells, function (cell, at) {
        if (!heads[at].classList.contains("num")) { line.push(quoted(cell.textContent)); return; }
        var d = cell.dataset;
        line.push(d.v || "", d.lo || "", d.hi || "", quoted(d.o || ("abstained: " + (d.why || cell.textContent))));
      });
      lines.push(line.join(","));
    });
    return lines.join("\r\n") + "\r\n";
  }
  document.querySelectorAll("button.csv").forEach(function (button) {
    button.addEventListener("click", function () {
      var link = document.createElement("a");
      link.href = "data:text/csv;charset=utf-8," + encodeURIComponent("\ufeff" + csv(document.getElementById(button.dataset.table)));
      link.download = button.dataset.name + ".csv";
      link.click();
    });
  });
})();
