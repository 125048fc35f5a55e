// Draws a dashboard from its JSON and the answers to its queries: what Grafana would show, in its
// colours and units, by other means. uPlot, which Grafana uses too, draws the lines.
"use strict";

const CELL = 38, GAP = 8, COLUMNS = 24;
const COLOURS = {
  green: "#73bf69", orange: "#ff9830", red: "#f2495c", blue: "#5794f2", purple: "#b877d9",
  text: "#ccccdc", transparent: "transparent",
};
const PALETTE = ["#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9",
  "#705da0", "#37872d", "#fade2a"];
const colour = name => COLOURS[name] ?? name;

const round = (n, decimals) => decimals != null ? n.toFixed(decimals)
  : String(Number(n.toPrecision(3)));

function scaled(n, base, names, decimals) {
  let at = 0;
  while (Math.abs(n) >= base && at < names.length - 1) { n /= base; at += 1; }
  return round(n, decimals) + names[at];
}

function seconds(n, decimals) {
  const size = Math.abs(n);
  if (size === 0) return "0 s";
  if (size < 1e-3) return round(n * 1e6, decimals) + " µs";
  if (size < 1) return round(n * 1e3, decimals) + " ms";
  if (size < 60) return round(n, decimals) + " s";
  if (size < 3600) return round(n / 60, decimals ?? 1) + " mins";
  if (size < 86400) return round(n / 3600, decimals ?? 1) + " hours";
  return round(n / 86400, decimals ?? 1) + " days";
}

function format(n, unit, decimals) {
  if (n == null || Number.isNaN(n)) return "";
  const thousands = ["", " K", " Mil", " Bil"];
  switch (unit) {
    case "s": return seconds(n, decimals);
    case "percentunit": return round(n * 100, decimals) + "%";
    case "bytes": return scaled(n, 1024, [" B", " KiB", " MiB", " GiB", " TiB"], decimals);
    case "Bps": return scaled(n, 1000, [" B/s", " kB/s", " MB/s", " GB/s"], decimals);
    case "ops": return scaled(n, 1000, [" ops/s", "K ops/s", "M ops/s"], decimals);
    case "wps": return scaled(n, 1000, [" wr/s", "K wr/s", "M wr/s"], decimals);
    case "cps": return scaled(n, 1000, [" c/s", "K c/s"], decimals);
    case "iops": return scaled(n, 1000, [" io/s", "K io/s"], decimals);
    case "short": return scaled(n, 1000, thousands, decimals);
    default: return round(n, decimals);
  }
}

/// The settings of one field: the defaults, and what overrides them by its name.
function settings(panel, name) {
  const own = structuredClone(panel.fieldConfig.defaults);
  for (const one of panel.fieldConfig.overrides) {
    if (one.matcher.options !== name) continue;
    for (const { id, value } of one.properties) {
      let at = own;
      const path = id.split(".");
      for (const step of path.slice(0, -1)) at = at[step] ??= {};
      at[path.at(-1)] = value;
    }
  }
  return own;
}

function mapped(n, own) {
  for (const one of own.mappings ?? []) {
    const found = one.options[String(n)];
    if (found) return found;
  }
  return null;
}

function threshold(n, own) {
  let found = "text";
  for (const step of own.thresholds?.steps ?? []) {
    if (step.value == null || n >= step.value) found = step.color;
  }
  return colour(found);
}

const clock = at => new Date(at * 1000).toTimeString().slice(0, 8);

const element = (tag, kind, text) => {
  const made = document.createElement(tag);
  made.className = kind;
  if (text != null) made.textContent = text;
  return made;
};

/// Every line of a panel: its name, and a map from time to number.
function series(panel, answers) {
  return answers.flatMap((answer, n) => answer.map(one => {
    const legend = panel.targets[n].legendFormat;
    const name = legend === "__auto" ? Object.values(one.metric).join(" ") || panel.title
      : legend.replace(/\{\{(\w+)\}\}/g, (_, label) => one.metric[label] ?? "");
    const points = new Map((one.values ?? [one.value]).map(([at, v]) => [Number(at), Number(v)]));
    return { name, points };
  }));
}

function drawStat(panel, answers, body) {
  const own = settings(panel, "");
  const [line] = series(panel, answers);
  const numbers = line ? [...line.points.values()].filter(n => !Number.isNaN(n)) : [];
  const last = numbers.at(-1);
  if (last === undefined && own.noValue === undefined) throw new Error("no data");
  body.classList.add("stat");
  body.style.background = last === undefined ? "" : threshold(last, own);
  const text = last === undefined ? own.noValue
    : mapped(last, own)?.text ?? format(last, own.unit, own.decimals);
  if (panel.options.graphMode === "area" && numbers.length > 1) {
    const high = Math.max(...numbers) || 1;
    const wide = 100 / (numbers.length - 1);
    const points = numbers.map((n, x) => `${x * wide},${40 - n / high * 30}`);
    body.innerHTML = `<svg viewBox="0 0 100 40" preserveAspectRatio="none"><polygon
      points="0,40 ${points.join(" ")} 100,40" fill="#ffffff40"/></svg>`;
  }
  body.append(element("span", "number", text));
}

/// Rows as the transformations leave them: {column: value}.
function rowsOf(panel, answers) {
  const many = answers.length > 1;
  let rows = [];
  for (const [n, answer] of answers.entries()) {
    const value = many ? `Value #${panel.targets[n].refId}` : "Value";
    for (const one of answer) {
      const row = { Time: one.value[0], ...one.metric, [value]: Number(one.value[1]) };
      // `merge`: into the row that agrees in all that both have.
      const agrees = other => Object.keys(row).every(k => !(k in other) || other[k] === row[k]);
      const same = many && rows.find(agrees);
      if (same) Object.assign(same, row); else rows.push(row);
    }
  }
  const organize = panel.transformations.find(one => one.id === "organize").options;
  const all = [...new Set(rows.flatMap(Object.keys))].filter(k => !organize.excludeByName[k]);
  all.sort((a, b) => (organize.indexByName[a] ?? 99) - (organize.indexByName[b] ?? 99));
  const names = all.map(k => organize.renameByName[k] ?? k);
  rows = rows.map(row => Object.fromEntries(all.map((k, n) => [names[n], row[k]])));
  const by = panel.options.sortBy?.[0]?.displayName;
  if (by) rows.sort((a, b) => String(a[by]).localeCompare(String(b[by])));
  return { names, rows };
}

function drawTable(panel, answers, body) {
  const { names, rows } = rowsOf(panel, answers);
  if (!rows.length) {
    if (panel.fieldConfig.defaults.noValue === undefined) throw new Error("no data");
    body.append(element("p", "none", panel.fieldConfig.defaults.noValue));
    return;
  }
  const table = body.appendChild(element("table", "table"));
  const head = table.appendChild(element("tr", ""));
  for (const name of names) head.append(element("th", "", name));
  for (const row of rows) {
    const line = table.appendChild(element("tr", ""));
    for (const name of names) {
      const own = settings(panel, name), value = row[name], map = mapped(value, own);
      const plain = typeof value === "number" ? format(value, own.unit, own.decimals) : value;
      const cell = line.appendChild(element("td", "", map?.text ?? plain ?? ""));
      if (own.custom?.cellOptions?.type === "color-text") {
        cell.style.color = map?.color ? colour(map.color) : threshold(value, own);
      }
    }
  }
}

const CALCS = {
  lastNotNull: ["Last", numbers => numbers.at(-1)],
  max: ["Max", numbers => Math.max(...numbers)],
  min: ["Min", numbers => Math.min(...numbers)],
};

function drawLegend(panel, lines, body) {
  const calcs = panel.options.legend.calcs;
  const table = body.appendChild(element("table", "legend"));
  const head = table.appendChild(element("tr", ""));
  head.append(element("th", "", "Name"));
  for (const calc of calcs) head.append(element("th", "right", CALCS[calc][0]));
  for (const line of lines) {
    const row = table.appendChild(element("tr", ""));
    const name = row.appendChild(element("td", ""));
    const mark = name.appendChild(element("i", "mark"));
    mark.style.background = line.colour;
    name.append(line.name);
    const numbers = [...line.points.values()].filter(n => !Number.isNaN(n));
    for (const calc of calcs) {
      const number = numbers.length ? CALCS[calc][1](numbers) : null;
      row.append(element("td", "right", format(number, line.own.unit, line.own.decimals)));
    }
  }
}

function drawLines(panel, answers, body, span) {
  const lines = series(panel, answers);
  if (!lines.length) throw new Error("no data");
  lines.sort((a, b) => a.name.localeCompare(b.name));
  for (const [n, line] of lines.entries()) {
    line.own = settings(panel, line.name);
    const fixed = line.own.color.mode === "fixed";
    line.colour = fixed ? colour(line.own.color.fixedColor) : PALETTE[n % PALETTE.length];
  }
  const times = [];
  for (let at = span.start; at <= span.end; at += span.step) times.push(at);
  const stacks = panel.fieldConfig.defaults.custom.stacking.mode === "normal";
  const below = times.map(() => 0);
  const data = lines.map(line => times.map((at, n) => {
    const number = line.points.get(at);
    if (number === undefined || Number.isNaN(number)) return null;
    return stacks ? below[n] += number : number;
  }));
  const plot = body.appendChild(element("div", "plot"));
  drawLegend(panel, lines, body);
  const own = panel.fieldConfig.defaults;
  const steps = own.custom.thresholdsStyle.mode === "line"
    ? own.thresholds.steps.filter(step => step.value != null) : [];
  const high = top => own.max ?? (Math.max(top, steps[0]?.value ?? 0) || 1) * 1.05;
  const grid = { stroke: "#ccccdc12", width: 1 };
  const axis = { stroke: "#9a9aa8", grid, ticks: { show: false }, font: "11px sans-serif" };
  const time = { ...axis, size: 28, values: (_, ticks) => ticks.map(clock) };
  const value = { ...axis, size: 68, values: (_, ticks) => ticks.map(n => format(n, own.unit)) };
  const shade = share => Math.round(share * 2.55).toString(16).padStart(2, "0");
  const draw = {
    width: plot.clientWidth, height: plot.clientHeight,
    legend: { show: false }, cursor: { show: false },
    scales: { y: { range: (_, low, top) => [own.min ?? low, high(top)] } },
    axes: [time, value],
    series: [{}, ...lines.map(({ colour, own: { custom } }) => ({
      stroke: colour, width: custom.lineWidth, points: { show: false },
      dash: custom.lineStyle?.dash,
      fill: custom.fillOpacity ? colour + shade(custom.fillOpacity) : undefined,
      paths: custom.drawStyle === "bars" ? uPlot.paths.bars({ size: [0.9, 20] }) : undefined,
    }))],
    bands: stacks ? lines.slice(1).map((_, n) => ({ series: [n + 2, n + 1] })) : [],
    hooks: { draw: [chart => {
      for (const step of steps) {
        const y = chart.valToPos(step.value, "y", true);
        chart.ctx.strokeStyle = colour(step.color);
        chart.ctx.setLineDash([6, 4]);
        chart.ctx.beginPath();
        chart.ctx.moveTo(chart.bbox.left, y);
        chart.ctx.lineTo(chart.bbox.left + chart.bbox.width, y);
        chart.ctx.stroke();
      }
    }] },
  };
  new uPlot(draw, [times, ...data], plot);
}

function place(made, at) {
  const width = document.body.clientWidth - GAP;
  made.style.left = `${GAP + at.x / COLUMNS * width}px`;
  made.style.top = `${GAP + 48 + at.y * CELL}px`;
  made.style.width = `${at.w / COLUMNS * width - GAP}px`;
  made.style.height = `${at.h * CELL - GAP}px`;
  document.body.append(made);
}

function drawPanel(panel, span) {
  const made = element("section", "panel");
  place(made, panel.gridPos);
  made.append(element("h2", "", panel.title));
  const body = made.appendChild(element("div", "body"));
  made.dataset.title = panel.title;
  made.dataset.error = "";
  try {
    if (panel.type === "stat") drawStat(panel, panel.answers, body);
    else if (panel.type === "table") drawTable(panel, panel.answers, body);
    else drawLines(panel, panel.answers, body, span);
  } catch (error) {
    made.dataset.error = error.message;
    body.append(element("p", "none", error.message));
  }
}

function drawAll({ title, choices, rows, panels, span }) {
  const head = document.body.appendChild(element("header", ""));
  head.append(element("b", "", title));
  for (const [label, value] of choices) {
    head.append(element("span", "label", label), element("span", "value", value));
  }
  for (const row of rows) {
    const made = element("h1", "row", row.title);
    place(made, row.gridPos);
  }
  for (const panel of panels) drawPanel(panel, span);
}
