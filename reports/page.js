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
  var drawn = [];
  function draw(id) {
    if (drawn.indexOf(id) >= 0) { return; }
    drawn.push(id);
    var layout = specs[id].layout, c = colours();
    layout.font.color = c["font.color"];
    layout.hoverlabel = Object.assign({}, layout.hoverlabel, { bgcolor: c["hoverlabel.bgcolor"], bordercolor: c["hoverlabel.bordercolor"] });
    layout.hoverlabel.font = Object.assign({}, layout.hoverlabel.font, { color: c["font.color"] });
    Plotly.newPlot(id, specs[id].data, layout, config);
    if (specs[id].data[0].type === "treemap") { levels(id); }
  }
  function plain(text) { return text.replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&"); }
  // A treemap is entered by a click; this list does the same from the keyboard.
  function levels(id) {
    var plot = document.getElementById(id), trace = specs[id].data[0], box = document.createElement("label");
    var list = document.createElement("select"), name = {};
    trace.ids.forEach(function (at, i) {
      var above = name[trace.parents[i]];
      name[at] = plain(trace.labels[i]);
      if (above !== undefined && trace.parents[i] !== trace.ids[0]) { name[at] = above + " \u203a " + name[at]; }
      if (trace.parents.indexOf(at) >= 0) { list.add(new Option(name[at], at)); }
    });
    list.addEventListener("change", function () { Plotly.restyle(id, { level: list.value }); });
    plot.on("plotly_treemapclick", function (event) { list.value = event.nextLevel || trace.ids[0]; });
    box.className = "level";
    box.append("Show ", list);
    plot.parentNode.insertBefore(box, plot);
  }
  function drawOpen(root) {
    root.querySelectorAll(".plot").forEach(function (plot) {
      var group = plot.closest("details.group");
      if (!group || group.open) { draw(plot.id); }
    });
  }
  document.querySelectorAll("details.group").forEach(function (group) {
    group.addEventListener("toggle", function () { drawOpen(group); });
  });
  drawOpen(document);
  function repaint() {
    drawn.forEach(function (id) { Plotly.relayout(id, colours()); });
  }
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("details").forEach(function (d) { d.open = true; });
    drawOpen(document);
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
