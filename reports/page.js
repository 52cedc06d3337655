(function () {
  "use strict";
  var specs = JSON.parse(document.getElementById("figures").textContent);
  var config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d", "sendChartToCloud"] };
  // A touch screen has no hover: there the tool bar would cover the legend for good.
  if (!window.matchMedia("(hover: hover)").matches) { config.displayModeBar = false; }
  function ink(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
  function colours() {
    return { "font.color": ink("--ink"), "hoverlabel.bgcolor": ink("--paper"), "hoverlabel.bordercolor": ink("--rule"), "hoverlabel.font.color": ink("--ink") };
  }
  var chosen = { model: [], track: [], hardware: [], origin: [] };
  function passes(element, kind) {
    var mine = element.dataset[kind];
    return !chosen[kind].length || !mine || chosen[kind].indexOf(mine) >= 0;
  }
  function any(names, kind) { return !chosen[kind].length || names.some(function (x) { return chosen[kind].indexOf(x) >= 0; }); }
  // What the filters leave of a figure. A point drawn from several origins needs all of them.
  function traceOf(trace) {
    var meta = trace.meta || {}, origins = meta.origins || [], keep;
    if (meta.model && !any([meta.model], "model")) { trace.visible = false; }
    if (chosen.origin.length && origins.some(function (x) { return chosen.origin.indexOf(x) < 0; })) { trace.visible = false; }
    if (meta.models && chosen.model.length && Array.isArray(trace.x) && Array.isArray(trace.y)) {
      keep = function (_, i) { return any([meta.models[i]], "model"); };
      trace.x = trace.x.filter(keep);
      trace.y = trace.y.filter(keep);
    }
    return trace;
  }
  function figureOf(id) {
    var spec = structuredClone(specs[id]), layout = spec.layout, c = colours(), left = {};
    spec.data.map(traceOf).forEach(function (trace) {
      if (trace.visible !== false && Array.isArray(trace.y)) { trace.y.forEach(function (y) { left[y] = true; }); }
    });
    if (layout.yaxis && layout.yaxis.categoryarray) {
      var all = layout.yaxis.categoryarray.length;
      layout.yaxis.categoryarray = layout.yaxis.categoryarray.filter(function (y) { return left[y]; });
      layout.height -= (layout.height - 90) / all * (all - layout.yaxis.categoryarray.length);
    }
    layout.font.color = c["font.color"];
    layout.hoverlabel = Object.assign({}, layout.hoverlabel, { bgcolor: c["hoverlabel.bgcolor"], bordercolor: c["hoverlabel.bordercolor"] });
    layout.hoverlabel.font = Object.assign({}, layout.hoverlabel.font, { color: c["font.color"] });
    return spec;
  }
  var drawn = {};
  function draw(id) {
    var spec = figureOf(id), first = !drawn[id];
    drawn[id] = true;
    document.getElementById(id).style.minHeight = spec.layout.height + "px";
    Plotly.react(id, spec.data, spec.layout, config);
    if (first && spec.data[0].type === "treemap") { levels(id); }
  }
  // One figure a task, and only those that come into view: the page answers meanwhile.
  var waiting = [], busy = false;
  function later(id) {
    if (waiting.indexOf(id) < 0) { waiting.push(id); }
    if (!busy) { busy = true; setTimeout(next, 0); }
  }
  function next() {
    var id = waiting.shift();
    busy = waiting.length > 0;
    if (busy) { setTimeout(next, 0); }
    draw(id);
  }
  var watch = new IntersectionObserver(function (entries) {
    entries.forEach(function (entry) {
      if (entry.isIntersecting) { watch.unobserve(entry.target); later(entry.target.id); }
    });
  }, { rootMargin: "300px 0px" });
  var plots = Array.prototype.slice.call(document.querySelectorAll(".plot"));
  plots.forEach(function (plot) { watch.observe(plot); });
  function plain(text) { return text.replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&#123;/g, "{").replace(/&#36;/g, "$$").replace(/&amp;/g, "&"); }
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
    plot.on("plotly_treemapclick", function (event) {
      list.value = event.nextLevel || trace.ids[0];
      if (!window.matchMedia("(prefers-reduced-motion: reduce)").matches) { return true; }
      Plotly.restyle(id, { level: list.value });
      return false;
    });
    box.className = "level";
    box.append("Show ", list);
    plot.parentNode.insertBefore(box, plot);
  }
  function repaint() {
    Object.keys(drawn).forEach(function (id) { Plotly.relayout(id, colours()); });
  }
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  function showRest(table) {
    table.querySelectorAll("tbody.rest").forEach(function (body) { body.hidden = false; });
    document.querySelectorAll("button.more").forEach(function (b) { if (b.dataset.table === table.id) { b.hidden = true; } });
  }
  document.querySelectorAll("button.more").forEach(function (button) {
    button.addEventListener("click", function () {
      var table = document.getElementById(button.dataset.table);
      showRest(table);
      table.parentNode.focus();
    });
  });
  // A link to something folded opens it.
  function unfold() {
    var target = location.hash && document.getElementById(location.hash.slice(1));
    if (target && target.matches("details")) { target.open = true; target.scrollIntoView(); }
  }
  window.addEventListener("hashchange", unfold);
  unfold();
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("main section details").forEach(function (d) { d.open = true; });
    document.querySelectorAll("tbody.rest").forEach(function (body) { showRest(body.parentNode); });
    plots.forEach(function (plot) { if (!drawn[plot.id]) { draw(plot.id); } });
    repaint();
  });

  // A row of two models: either of them for one chosen, both for several.
  function modelPasses(row) {
    if (!chosen.model.length || !row.dataset.against) { return passes(row, "model"); }
    var found = [row.dataset.model, row.dataset.against].filter(function (x) { return chosen.model.indexOf(x) >= 0; }).length;
    return found === Math.min(chosen.model.length, 2);
  }
  function rowPasses(row) {
    var origins = row.dataset.origins;
    return modelPasses(row) && passes(row, "track") && passes(row, "hardware") && (!origins || any(origins.split(" "), "origin"));
  }
  function filterTable(table) {
    var left = 0, all = 0, on = Object.keys(chosen).some(function (k) { return chosen[k].length; });
    if (on) { showRest(table); }
    table.querySelectorAll("tbody tr").forEach(function (row) {
      row.hidden = !rowPasses(row);
      left += !row.hidden;
      all += 1;
    });
    table.querySelectorAll("thead th").forEach(function (head, at) {
      var hide = !passes(head, "hardware");
      if (!head.dataset.hardware) { return; }
      Array.prototype.forEach.call(table.rows, function (row) { row.cells[at].hidden = hide; });
    });
    return { left: left, all: all };
  }
  // A column of one origin says it once, at its head; what looks at single cells gives it to them first.
  var named = false;
  function nameOrigins() {
    if (named) { return; }
    named = true;
    document.querySelectorAll("thead th[data-o]").forEach(function (head) {
      Array.prototype.forEach.call(head.closest("table").rows, function (row) {
        var cell = row.cells[head.cellIndex];
        if (cell.dataset.v !== undefined) { cell.dataset.o = head.dataset.o; }
      });
    });
  }
  function filterPage() {
    var left = 0, all = 0;
    Object.keys(chosen).forEach(function (kind) {
      var now = document.querySelector('[data-chosen="' + kind + '"]');
      if (now) { now.textContent = chosen[kind].join(", ") || "all"; }
    });
    if (chosen.origin.length) { nameOrigins(); }
    document.body.className = (chosen.origin.length ? "by-origin " : "") + chosen.origin.map(function (x) { return "o-" + x; }).join(" ");
    document.querySelectorAll("main .exhibit, main details[data-model], #lost").forEach(function (box) {
      var rows = 0;
      box.querySelectorAll("table").forEach(function (table) {
        var found = filterTable(table);
        rows += found.left;
        left += passes(box, "model") && passes(box, "track") && passes(box, "hardware") ? found.left : 0;
        all += found.all;
      });
      if (box.id !== "lost") { box.hidden = !rows || !passes(box, "model") || !passes(box, "track") || !passes(box, "hardware"); }
    });
    document.querySelectorAll("figure[data-hardware]").forEach(function (f) { f.hidden = !passes(f, "hardware"); });
    document.querySelectorAll("details.group").forEach(function (g) { g.hidden = !g.querySelector(".exhibit:not([hidden])"); });
    var on = left < all;
    document.querySelector(".filters .all").hidden = !Object.keys(chosen).some(function (k) { return chosen[k].length; });
    document.querySelector(".filters output").textContent = on ? left.toLocaleString("en") + " of " + all.toLocaleString("en") + " rows of tables; sentences stay those of all" : "";
    plots.forEach(function (plot) {
      if (drawn[plot.id]) { watch.unobserve(plot); watch.observe(plot); }
    });
  }
  var filters = document.querySelector(".filters");
  if (filters) {
    filters.hidden = false;
    filters.addEventListener("change", function () {
      Object.keys(chosen).forEach(function (kind) {
        chosen[kind] = Array.prototype.map.call(filters.querySelectorAll('[data-filter="' + kind + '"]:checked'), function (x) { return x.value; });
      });
      filterPage();
    });
    filters.querySelector(".all").addEventListener("click", function () {
      filters.querySelectorAll("input:checked").forEach(function (x) { x.checked = false; });
      filters.dispatchEvent(new Event("change"));
      filters.querySelector("summary").focus();
    });
    filters.addEventListener("keydown", function (event) {
      var open = event.key === "Escape" && filters.querySelector("details[open]");
      if (open) { open.open = false; open.querySelector("summary").focus(); }
    });
    document.addEventListener("click", function (event) {
      filters.querySelectorAll("details[open]").forEach(function (d) { if (!d.contains(event.target)) { d.open = false; } });
    });
  }

  function quoted(text) {
    // A cell that a spreadsheet would run as a formula is made text.
    if (/^[\s\u0000-\u001f]*[=+@\-\uff1d\uff0b\uff20\uff0d]/.test(text) && isNaN(Number(text))) { text = "'" + text; }
    return '"' + text.replace(/"/g, '""') + '"';
  }
  // Why a number is withheld: in its cell, or a note below the table where the reason is long.
  function why(cell) {
    var mark = cell.querySelector("sup"), box = cell.closest(".scroll").nextElementSibling;
    if (!mark) { return cell.textContent.replace(/^—\s*\(|\)\s*$/g, ""); }
    return box.children[Number(mark.textContent) - 1].lastChild.textContent.trim();
  }
  document.addEventListener("mouseover", function (event) {
    var cell = event.target.closest && event.target.closest("td.withheld");
    if (cell && !cell.title) { cell.title = why(cell); }
  });
  function csv(table) {
    var heads = table.tHead.rows[0].cells, lines = [], head = [], i;
    nameOrigins();
    for (i = 0; i < heads.length; i++) {
      var name = heads[i].querySelector(".h").textContent;
      head.push(quoted(name));
      if (heads[i].classList.contains("num")) { ["low", "high", "origin"].forEach(function (x) { head.push(quoted(name + " " + x)); }); }
    }
    lines.push(head.join(","));
    table.querySelectorAll("tbody tr:not([hidden])").forEach(function (row) {
      var line = [];
      Array.prototype.forEach.call(row.cells, function (cell, at) {
        if (!heads[at].classList.contains("num")) { line.push(quoted(cell.textContent)); return; }
        var d = cell.dataset;
        if (d.o && !any([d.o], "origin")) { line.push("", "", "", quoted("filtered out: " + d.o)); return; }
        line.push(d.v || "", d.lo || "", d.hi || "", quoted(d.o || "abstained: " + why(cell)));
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
