"use strict";
// Tables that sort and filter, charts with hover, light and dark. Everything is in the page.
(() => {
  const make = (tag, text, attributes = {}) => {
    const node = document.createElement(tag);
    node.textContent = text ?? "";
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };
  const svg = (tag, attributes = {}, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const number = text => {
    const clean = String(text).replace(/\u2212/g, "-").replace(/(\d),(?=\d{3})/g, "$1");
    const found = clean.match(/^[[(+]*(-?[\d.]+(?:e[-+]?\d+)?)/i);
    return found ? Number(found[1]) : NaN;
  };
  const prose = text => isNaN(number(text)) || /[a-z]{4}/i.test(text);
  const save = (name, header, rows) => {
    const cell = text => /[",\n]/.test(text) ? `"${String(text).replace(/"/g, '""')}"` : text;
    const text = [header, ...rows].map(row => row.map(cell).join(",")).join("\n") + "\n";
    const link = make("a", "", { download: name, href: URL.createObjectURL(new Blob([text], { type: "text/csv" })) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  const file = text => text.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 40) + ".csv";

  // Theme: the reader's choice, else the system's.
  const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)");
  const remembered = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const theme = name => {
    root.dataset.theme = name;
    toggle.textContent = name === "dark" ? "Light" : "Dark";
  };
  const toggle = make("button", "", { id: "theme", type: "button", "aria-label": "Switch between light and dark" });
  document.querySelector("header.bar").append(toggle);
  theme(remembered() || (system.matches ? "dark" : "light"));
  system.addEventListener("change", event => remembered() || theme(event.matches ? "dark" : "light"));
  toggle.addEventListener("click", () => {
    theme(root.dataset.theme === "dark" ? "light" : "dark");
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* a page of a file may not keep it */ }
  });

  // Tables
  for (const table of document.querySelectorAll("table")) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0], rows = [...body.rows];
    const names = heads.map(head => head.textContent.trim());
    const texts = rows.map(row => [...row.cells].map(cell => cell.textContent.trim()));
    const label = table.parentElement.getAttribute("aria-label") || "table";
    const wordy = heads.map((_, j) => {
      const said = texts.map(row => row[j]).filter(Boolean), words = said.filter(prose);
      return j > 0 && words.length > said.length / 2 && words.some(text => text.length > 3);
    });
    table.classList.toggle("many", heads.length > 9);
    heads.forEach((head, j) => wordy[j] && head.classList.add("words"));
    texts.forEach((row, i) => row.forEach((text, j) => {
      const cell = rows[i].cells[j];
      if (wordy[j] || (j && prose(text) && text.length > 3)) cell.classList.add("words");
      if (text.length > (j ? 60 : 24)) cell.classList.add("long");
      if (["higher", "lower"].includes(text)) cell.classList.add(text);
    }));
    const tools = make("div", "", { class: "tools" });
    if (rows.length > 1) heads.forEach((head, j) => {
      const button = make("button", names[j], { type: "button" });
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "descending";
        heads.forEach(other => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "ascending" : "descending");
        const values = texts.map(row => number(row[j]));
        const known = values.filter(value => !isNaN(value)).length > values.length / 2;
        const order = rows.map((_, i) => i).sort((a, b) => {
          if (!known) return (down ? 1 : -1) * texts[a][j].localeCompare(texts[b][j], undefined, { numeric: true });
          const lost = isNaN(values[a]) - isNaN(values[b]);
          return lost || (down ? 1 : -1) * (values[a] - values[b]) || a - b;
        });
        body.append(...order.map(i => rows[i]));
      });
    });
    if (rows.length > 5) {
      const box = make("input", "", {
        type: "search", placeholder: "Filter: words, or column > 90", "aria-label": `Filter the rows of ${label}`,
      });
      const count = make("output", `${rows.length} rows`);
      box.addEventListener("input", () => {
        const asked = box.value.trim().toLowerCase(), test = asked.match(/^(.+?)\s*([<>])\s*(-?[\d.]+)$/);
        const at = test ? names.findIndex(name => name.toLowerCase().includes(test[1])) : -1;
        let shown = 0;
        rows.forEach((row, i) => {
          const value = at < 0 ? NaN : number(texts[i][at]);
          const keep = at < 0 ? asked.split(/\s+/).every(word => texts[i].join(" ").toLowerCase().includes(word))
            : test[2] === ">" ? value > test[3] : value < test[3];
          row.hidden = !keep;
          shown += keep;
        });
        count.textContent = shown === rows.length ? `${rows.length} rows` : `${shown} of ${rows.length} rows`;
      });
      tools.append(box, count);
    }
    const button = make("button", "CSV", { type: "button", "aria-label": `Save ${label} as CSV` });
    button.addEventListener("click", () => save(file(label.replace("Table: ", "")), names, texts));
    tools.append(button);
    table.parentElement.before(tools);
  }

  // Charts
  const COLOURS = 7, form = value => {
    const size = Math.abs(value);
    if (size >= 1e6) return `${+(value / 1e6).toPrecision(4)} M`;
    if (size >= 1e4) return `${+(value / 1e3).toPrecision(4)} k`;
    return String(+value.toPrecision(size >= 100 ? 5 : 4));
  };
  const ticks = (low, high, count) => {
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find(each => power * each >= rough);
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) found.push(+at.toPrecision(12));
    return found;
  };
  const logTicks = (low, high, count) => {
    const all = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const lead of [1, 2, 5]) all.push(lead * 10 ** power);
    const inside = all.filter(at => at >= low * 0.999 && at <= high * 1.001);
    const decades = inside.filter(at => Number.isInteger(+Math.log10(at).toFixed(6)));
    return inside.length > count && decades.length > 1 ? decades : inside;
  };
  const glyph = (at, x, y, size = 4.5) => {
    const colour = `var(--c${at % COLOURS})`, shape = (at + Math.floor(at / COLOURS)) % 4;
    if (shape === 0) return svg("circle", { cx: x, cy: y, r: size, fill: colour, class: "mark" });
    const points = shape === 1 ? [[-1, -1], [1, -1], [1, 1], [-1, 1]] : shape === 2 ? [[0, -1.3], [1.2, 1], [-1.2, 1]]
      : [[0, -1.4], [1.4, 0], [0, 1.4], [-1.4, 0]];
    const path = points.map(([dx, dy]) => `${x + dx * size * 0.9},${y + dy * size * 0.9}`).join(" ");
    return svg("polygon", { points: path, fill: colour, class: "mark" });
  };

  const tones = new Map();  // a name has one colour in all charts that share them
  const tone = name => tones.get(name) ?? tones.set(name, tones.size).get(name);

  function chart(figure) {
    const spec = JSON.parse(figure.querySelector("script").textContent), { header, rows } = spec;
    const caption = figure.querySelector("figcaption").textContent.trim();
    const place = make("div"), legend = make("div", "", { class: "legend" }), tools = make("div", "", { class: "tools" });
    const tip = make("div", "", { class: "tip", hidden: "" }), hidden = new Set();
    figure.append(tools, legend, place, tip);
    let axis = spec.xs ? spec.xs[spec.start || 0] : null, log = spec.xs ? Boolean(axis.log) : false;
    if (spec.xs) {
      const pick = make("select", "", { "aria-label": `Horizontal axis of: ${caption}` });
      spec.xs.forEach((one, i) => pick.append(make("option", one.label, { value: i })));
      const box = make("label"), check = make("input", "", { type: "checkbox" });
      check.checked = log;
      pick.value = spec.start || 0;
      box.append(check, " log scale");
      pick.addEventListener("change", () => { axis = spec.xs[pick.value]; check.checked = log = Boolean(axis.log); draw(); });
      check.addEventListener("change", () => { log = check.checked; draw(); });
      tools.append(pick, box);
    }
    const button = make("button", "CSV", { type: "button", "aria-label": `Save the numbers of: ${caption}` });
    button.addEventListener("click", () => save(file(spec.name), header, rows));
    tools.append(button);

    const column = name => header.indexOf(name);
    const get = (row, name) => number(row[column(name)] ?? "");
    const say = (mark, words, x, y) => {
      mark.append(svg("title", {}, words));
      const show = () => {
        tip.textContent = words;
        tip.hidden = false;
        const box = place.getBoundingClientRect(), out = figure.getBoundingClientRect();
        const scale = box.width / place.firstChild.viewBox.baseVal.width;
        const left = box.left - out.left + x * scale, top = box.top - out.top + y * scale;
        tip.style.left = `${Math.max(4, Math.min(left + 12, out.width - tip.offsetWidth - 8))}px`;
        tip.style.top = `${Math.max(4, top - tip.offsetHeight - 10)}px`;
      };
      mark.addEventListener("pointerenter", show);
      mark.addEventListener("pointerleave", () => { tip.hidden = true; });
    };
    const canvas = (width, height, words) => {
      const drawn = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": words });
      place.replaceChildren(drawn);
      return drawn;
    };
    const words = name => spec.words ? name.replace(/_/g, " ").replace(/^val /, "validation ") : name;
    const entry = (name, at, flat = false) => {
      const one = make("button", "", { type: "button", "aria-pressed": !hidden.has(name) }), sign = svg("svg", { viewBox: "0 0 14 14" });
      sign.append(flat ? svg("line", { x1: 0, x2: 14, y1: 7, y2: 7, stroke: "var(--faint)", "stroke-width": 2, "stroke-dasharray": "4 3" }) : glyph(at, 7, 7));
      one.append(sign, words(name));
      one.addEventListener("click", () => { hidden.has(name) ? hidden.delete(name) : hidden.add(name); draw(); });
      return one;
    };

    function points() {
      // Series in the order of their first row; x of a fraction removed becomes the share kept.
      const found = new Map();
      const kept = spec.kept && Math.max(...rows.map(row => get(row, spec.x)).filter(x => !isNaN(x))) >= 0.9;
      for (const row of rows) {
        const name = spec.series ? String(row[column(spec.series)]) : spec.y_label;
        if (!found.has(name)) found.set(name, []);
        let x = get(row, axis ? axis.column : spec.x);
        if (axis && axis.kept) x = 100 - x;
        if (kept) x = 100 * (1 - x);
        const y = get(row, spec.y), spread = spec.spread ? get(row, spec.spread) : NaN;
        const ends = spec.interval ? (row[column(spec.interval)] || "").match(/-?[\d.]+/g) || [] : [];
        const low = ends.length === 2 ? +ends[0] : spread ? y - spread : NaN;
        const high = ends.length === 2 ? +ends[1] : spread ? y + spread : NaN;
        if (!isNaN(y)) found.get(name).push({ x, y, low, high, row });
      }
      return { found, kept };
    }

    function xy() {
      const { found, kept } = points(), names = [...found.keys()];
      // "imp 0.9" and "imp 0.96" share the colour and the entry of "imp".
      const group = name => spec.group ? name.replace(/ (\d*\.?\d+|\de-\d+)$/, "") : name;
      const groups = [...new Set(names.map(group))];
      const colour = name => spec.shared ? tone(group(name)) : groups.indexOf(group(name));
      const level = name => !axis && found.get(name).every(dot => isNaN(dot.x));  // drawn as a line across
      legend.replaceChildren(...(groups.length > 1 ? groups.map(one => entry(one, colour(one), names.includes(one) && level(one))) : []));
      const shown = names.filter(name => !hidden.has(group(name)));
      const dots = shown.flatMap(name => found.get(name).filter(dot => !isNaN(dot.x)).map(dot => ({ ...dot, name })));
      const flat = axis ? [] : shown.flatMap(name => found.get(name).filter(dot => isNaN(dot.x)).map(dot => ({ ...dot, name })));
      const width = Math.max(300, place.clientWidth || 600), height = Math.round(Math.min(420, Math.max(270, width * 0.55)));
      const label = kept ? spec.x_label.replace(/removed.*/, "kept (%), log scale") : axis ? axis.label : spec.x_label;
      const scaled = (log || kept) && dots.every(dot => dot.x > 0);
      const drawn = canvas(width, height, `${caption} ${spec.alt || ""}`);
      if (!dots.length) { drawn.append(svg("text", { x: 20, y: 40 }, "Nothing is known on this axis.")); return; }
      let xs = dots.map(dot => dot.x), [x0, x1] = [Math.min(...xs), Math.max(...xs)];
      if (scaled) { const gap = (x1 / x0) ** 0.06 || 1.05; x0 /= Math.max(gap, 1.03); x1 *= Math.max(gap, 1.03); if (kept || axis?.kept) x1 = Math.min(x1, 108); }
      else { const gap = (x1 - x0) * 0.05 || Math.abs(x0) * 0.05 || 0.5; x0 -= spec.zero_x ? Math.min(gap, x0) : gap; x1 += gap; }
      let ys = [...dots, ...flat].flatMap(dot => [dot.y, dot.low, dot.high]).filter(y => !isNaN(y));
      let [y0, y1] = [Math.min(...ys), Math.max(...ys)];
      if (spec.zero) y0 = Math.min(0, y0);
      const short = (spec.least || 0) - (y1 - y0);
      if (short > 0) { y0 -= short / 2; y1 += short / 2; }
      const air = (y1 - y0) * 0.06 || 0.05;
      y1 += air; if (!spec.zero) y0 -= air;
      if (spec.top !== undefined && y1 > spec.top) { y0 -= short > 0 ? Math.min(y1 - spec.top, short) : 0; y1 = spec.top + air * 0.4; }
      if (spec.top === 100) y0 = Math.max(y0, 0);
      const rates = spec.group && !spec.front && names.some(name => group(name) !== name);
      const heights = ticks(y0, y1, 5), longest = Math.max(...heights.map(at => form(at).length));
      const pad = { left: Math.max(52, 30 + 7 * longest), right: rates ? 40 : 16, top: 14, bottom: 44 }, ends = [];
      const turn = kept || Boolean(axis && axis.kept);  // what is kept runs from all to little
      const part = value => scaled ? Math.log(value / x0) / Math.log(x1 / x0) : (value - x0) / (x1 - x0);
      const px = value => pad.left + (turn ? 1 - part(value) : part(value)) * (width - pad.left - pad.right);
      const py = value => height - pad.bottom - (value - y0) / (y1 - y0) * (height - pad.top - pad.bottom);
      for (const at of heights) {
        drawn.append(svg("line", { x1: pad.left, x2: width - pad.right, y1: py(at), y2: py(at), class: "grid" }));
        drawn.append(svg("text", { x: pad.left - 7, y: py(at) + 4, "text-anchor": "end", class: "tick" }, form(at)));
      }
      const count = Math.max(3, Math.min(8, Math.floor(width / 80)));
      let marks = scaled ? logTicks(x0, x1, count) : ticks(x0, x1, count);
      if (spec.whole) marks = marks.filter(Number.isInteger);
      for (const at of marks) {
        drawn.append(svg("line", { x1: px(at), x2: px(at), y1: pad.top, y2: height - pad.bottom, class: "grid" }));
        drawn.append(svg("text", { x: px(at), y: height - pad.bottom + 17, "text-anchor": "middle", class: "tick" }, form(at)));
      }
      drawn.append(svg("line", { x1: pad.left, x2: width - pad.right, y1: height - pad.bottom, y2: height - pad.bottom, class: "axis" }));
      drawn.append(svg("text", { x: (pad.left + width - pad.right) / 2, y: height - 8, "text-anchor": "middle" }, label));
      drawn.append(svg("text", { transform: `translate(13 ${(pad.top + height - pad.bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, spec.y_label));
      for (const dot of flat) {
        drawn.append(svg("line", { x1: pad.left, x2: width - pad.right, y1: py(dot.y), y2: py(dot.y), stroke: "var(--faint)", "stroke-dasharray": "6 4" }));
        const mark = svg("text", { x: width - pad.right, y: py(dot.y) - 5, "text-anchor": "end", class: "tick" }, `${dot.name} ${form(dot.y)}`);
        drawn.append(mark);
      }
      if (spec.front) {
        const better = (a, b) => a.x < b.x;
        const front = dots.filter(dot => !dots.some(other => other !== dot && (better(other, dot) || other.x === dot.x) && other.y >= dot.y
          && (other.y > dot.y || better(other, dot)))).sort((a, b) => a.x - b.x);
        const path = front.map((dot, i) => i ? `H${px(dot.x)}V${py(dot.y)}` : `M${px(dot.x)} ${py(dot.y)}`).join("");
        drawn.append(svg("path", { d: path, fill: "none", stroke: "var(--faint)", "stroke-dasharray": "5 4" }));
      }
      const hit = [];
      shown.forEach(name => {
        const at = colour(name), own = found.get(name).filter(dot => !isNaN(dot.x)), ink = `var(--c${at % COLOURS})`;
        if (rates && own.length && group(name) !== name) {
          const last = own[own.length - 1], y = py(last.y) + 4;
          if (ends.every(other => Math.abs(other - y) > 11)) {
            ends.push(y);
            drawn.append(svg("text", { x: px(last.x) + 8, y, class: "tick" }, name.slice(group(name).length + 1)));
          }
        }
        if (!spec.front && own.length > 1) {
          const path = own.map((dot, i) => `${i ? "L" : "M"}${px(dot.x).toFixed(1)} ${py(dot.y).toFixed(1)}`).join("");
          const dash = /\b(random|control|shuffle|fresh)/.test(name) ? "2 4" : "none";
          drawn.append(svg("path", { d: path, fill: "none", stroke: ink, "stroke-width": 2, "stroke-dasharray": dash }));
        }
        for (const dot of own) {
          const x = px(dot.x), y = py(dot.y);
          if (!isNaN(dot.low)) {
            const whisker = [py(Math.min(dot.high, y1)), py(Math.max(dot.low, y0))];
            drawn.append(svg("line", { x1: x, x2: x, y1: whisker[0], y2: whisker[1], stroke: ink, "stroke-width": 1.5 }));
            for (const end of whisker) drawn.append(svg("line", { x1: x - 4, x2: x + 4, y1: end, y2: end, stroke: ink, "stroke-width": 1.5 }));
          }
          const mark = glyph(at, x, y, spec.front || own.length < 60 ? 4.5 : 2.5);
          const range = isNaN(dot.low) ? "" : ` [${form(dot.low)}, ${form(dot.high)}]`;
          const phase = spec.note ? `\n${spec.note}: ${dot.row[column(spec.note)]}` : "";
          say(mark, `${names.length > 1 ? `${words(name)}\n` : ""}${spec.y_label}: ${form(dot.y)}${range}\n${label}: ${form(dot.x)}${phase}`, x, y);
          hit.push(mark);
        }
      });
      drawn.append(...hit);
    }

    function bars() {
      // Each label is one bar; rows with a part are stacked.
      const parts = spec.part ? [...new Set(rows.map(row => String(row[column(spec.part)])))] : [spec.value_label];
      legend.replaceChildren(...(spec.part ? parts.map((part, at) => entry(part, at)) : []));
      const found = new Map();
      for (const row of rows) {
        const name = spec.labels.map(each => row[column(each)]).join(", ");
        if (!found.has(name)) found.set(name, []);
        const part = spec.part ? String(row[column(spec.part)]) : parts[0];
        if (!hidden.has(part)) found.get(name).push({ part, value: get(row, spec.value) });
      }
      const names = [...found.keys()], width = Math.max(300, place.clientWidth || 600);
      const longest = Math.min(width * 0.42, 7 * Math.max(...names.map(name => name.length)) + 12), step = names.length > 12 ? 20 : 30;
      const height = names.length * step + 48, room = width - longest - 70;
      const top = Math.max(...names.map(name => found.get(name).reduce((sum, one) => sum + (one.value || 0), 0)), 0) || 1;
      const drawn = canvas(width, height, `${caption} ${spec.alt || ""}`);
      for (const at of ticks(0, top, Math.max(2, Math.min(5, Math.floor(room / 70))))) {
        const x = longest + at / top * room;
        drawn.append(svg("line", { x1: x, x2: x, y1: 4, y2: names.length * step + 4, class: "grid" }));
        drawn.append(svg("text", { x, y: names.length * step + 20, "text-anchor": "middle", class: "tick" }, form(at)));
      }
      drawn.append(svg("text", { x: longest + room / 2, y: height - 8, "text-anchor": "middle" }, spec.value_label));
      names.forEach((name, i) => {
        const y = i * step + 6, letters = Math.floor((longest - 8) / 6.6);
        const cut = name.length > letters ? `\u2026${name.slice(1 - letters)}` : name;
        const text = svg("text", { x: longest - 6, y: y + step / 2, "text-anchor": "end", "font-size": 11 }, cut);
        text.append(svg("title", {}, name));
        drawn.append(text);
        let x = longest, sum = 0;
        for (const { part, value } of found.get(name)) {
          const size = (value || 0) / top * room;
          const bar = svg("rect", { x, y, width: Math.max(size, 0), height: step - 6, fill: `var(--c${parts.indexOf(part) % COLOURS})`, class: "mark" });
          say(bar, `${name}\n${spec.part ? part + ": " : ""}${form(value)} ${spec.unit || ""}`.trim(), x + size / 2, y);
          drawn.append(bar);
          x += size;
          sum += value || 0;
        }
        const dead = spec.dead && sum === 0;
        drawn.append(svg("text", { x: x + 5, y: y + step / 2, "font-size": 11, ...(dead ? { style: "fill: var(--warn)" } : {}) }, dead ? "dead" : form(sum)));
      });
    }

    function cells() {
      // Long rows (row, column, value), or a square table whose first column names its rows.
      legend.replaceChildren();
      const flat = spec.square ? rows.flatMap(row => header.slice(1).map((name, j) => [String(row[0]), name, row[j + 1]]))
        : rows.map(row => [String(row[column(spec.row)]), spec.columns.map(name => row[column(name)]).join(" "), row[column(spec.value)]]);
      const down = [...new Set(flat.map(one => one[0]))], across = [...new Set(flat.map(one => one[1]))];
      const sums = new Map(down.map(name => [name, flat.filter(one => one[0] === name).reduce((sum, one) => sum + (number(one[2]) || 0), 0)]));
      const share = one => spec.share ? number(one[2]) / (sums.get(one[0]) || 1) : number(one[2]);
      const top = spec.share ? 1 : spec.top || Math.max(...flat.map(one => number(one[2])).filter(value => !isNaN(value)), 1e-12);
      const width = Math.max(300, place.clientWidth || 600);
      const left = Math.min(width * 0.4, 6.6 * Math.max(...down.map(name => name.length)) + 26);
      const cell = Math.min(spec.square || spec.even ? 46 : 90, (width - left - 8) / across.length);
      const tall = spec.square || spec.even ? cell : Math.max(12, Math.min(20, 400 / down.length)), head = 22;
      const longest = Math.max(...across.map(name => name.length)), turned = longest * 6.6 > cell;
      const foot = (turned ? Math.min(120, longest * 5 + 12) : 20) + 22;
      const height = head * 0 + 6 + down.length * tall + foot;
      const drawn = canvas(width, height, `${caption} ${spec.alt || ""}`);
      const every = Math.max(1, Math.ceil(13 / tall)), each = turned ? Math.max(1, Math.ceil(14 / cell)) : Math.max(1, Math.ceil((longest * 6.6 + 4) / cell));
      down.forEach((name, i) => {
        const letters = Math.floor((left - 24) / 6.2), cut = name.length > letters ? `\u2026${name.slice(1 - letters)}` : name;
        if (i % every === 0) drawn.append(svg("text", { x: left - 5, y: 6 + i * tall + tall / 2 + 4, "text-anchor": "end", "font-size": 11, class: "tick" }, cut));
      });
      across.forEach((name, j) => {
        if (j % each) return;
        const x = left + j * cell + cell / 2, y = 6 + down.length * tall + 14;
        drawn.append(svg("text", turned ? { transform: `translate(${x + 4} ${y - 4}) rotate(-40)`, "text-anchor": "end", "font-size": 11, class: "tick" }
          : { x, y, "text-anchor": "middle", "font-size": 11, class: "tick" }, name.length > 22 ? `\u2026${name.slice(-21)}` : name));
      });
      drawn.append(svg("text", { x: left + across.length * cell / 2, y: height - 4, "text-anchor": "middle" }, spec.x_label));
      drawn.append(svg("text", { transform: `translate(11 ${6 + down.length * tall / 2}) rotate(-90)`, "text-anchor": "middle" }, spec.y_label));
      for (const one of flat) {
        const i = down.indexOf(one[0]), j = across.indexOf(one[1]), value = number(one[2]);
        const x = left + j * cell, y = 6 + i * tall, strength = isNaN(value) ? 0 : Math.min(1, share(one) / top);
        const box = svg("rect", {
          x, y, width: Math.max(cell - 1, 1), height: Math.max(tall - 1, 1), class: "mark",
          fill: isNaN(value) ? "var(--line)" : value === 0 && spec.dead ? "var(--c1)" : `rgba(var(--low), ${(0.04 + 0.96 * strength).toFixed(3)})`,
        });
        say(box, `${spec.y_label} ${one[0]}\n${spec.x_label} ${one[1]}\n${spec.value_label}: ${isNaN(value) ? "not known" : form(value)}`, x + cell / 2, y);
        drawn.append(box);
        if (cell > 26 && tall > 14 && value && spec.texts) drawn.append(svg("text", {
          x: x + cell / 2, y: y + tall / 2 + 4, "text-anchor": "middle", "font-size": cell > 36 ? 11 : 9, "pointer-events": "none",
          ...(strength > 0.55 ? { style: "fill: var(--back)" } : {}),
        }, Number.isInteger(value) ? form(value) : String(+value.toPrecision(cell > 40 ? 3 : 2))));
      }
    }

    const draw = () => { tip.hidden = true; ({ bars, cells }[spec.kind] || xy)(); };
    let before = 0;
    new ResizeObserver(() => { if (Math.abs(place.clientWidth - before) > 1) { before = place.clientWidth; draw(); } }).observe(place);
    before = place.clientWidth;
    draw();
  }
  document.querySelectorAll("figure.chart").forEach(chart);
})();
