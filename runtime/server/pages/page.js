// The page at /: asks /status once a second while somebody looks, and draws what it says; asks a model for a picture.

import { ask, element, keepToken, Refusal, token, unlocking } from "./common.js";

const POLL_MS = 1000;
const AWAY_MS = 3000;
const PATIENCE_MS = 5000;
const HISTORY_S = 60;
const RATE_S = 3; // rates are over so many seconds
const FILL_S = 10;
const ENOUGH = { 0.5: 11, 0.99: 662 }; // answers that stand behind a percentile: MLPerf's early stopping, one above it
const SVG = "http://www.w3.org/2000/svg";

const at = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

// ---------------------------------------------------------------- figures: counters that only grow, read twice

/** Of one process of the server: what it said during the last minute. Several processes may answer in turns. */
const histories = new Map();

function remember(status) {
  let samples = histories.get(status.instance) ?? [];
  const last = samples.at(-1);
  if (last && (status.at_s <= last.at_s || startedAnew(last, status))) samples = [];
  samples.push(status);
  while (samples[0].at_s < status.at_s - HISTORY_S) samples.shift();
  histories.delete(status.instance);
  histories.set(status.instance, samples);
  if (histories.size > 16) histories.delete(histories.keys().next().value);
  return samples;
}

const startedAnew = (before, now) =>
  now.models.some((model) => {
    const earlier = found(before, keyOf(model));
    return earlier && (model.success < earlier.success || model.batches < earlier.batches);
  });

const keyOf = (model) => `${model.name}/${model.version}`;
const found = (status, key) => status.models.find((model) => keyOf(model) === key);
const failures = (model) => Object.values(model.failures).reduce((sum, count) => sum + count, 0);

/** [earlier, now, seconds between] of one model, over about that long; null while there is nothing to compare. */
function span(samples, key, seconds) {
  const last = samples.at(-1);
  const now = found(last, key);
  for (const sample of samples) {
    const earlier = found(sample, key);
    if (sample !== last && earlier && sample.at_s >= last.at_s - seconds - 0.5) return [earlier, now, last.at_s - sample.at_s];
  }
  return null;
}

function rate(samples, key, count, seconds = RATE_S) {
  const pair = span(samples, key, seconds);
  return pair && (count(pair[1]) - count(pair[0])) / pair[2];
}

/** {count, low, high, value} in seconds out of the histogram of the last minute; value is interpolated in its bucket. */
function percentile(samples, key, share) {
  const pair = span(samples, key, HISTORY_S);
  if (!pair) return { count: 0 };
  const buckets = pair[1].buckets.map((number, index) => number - pair[0].buckets[index]);
  const count = buckets.reduce((sum, number) => sum + number, 0);
  if (count < ENOUGH[share]) return { count };
  const bounds = samples.at(-1).bounds_s;
  let before = 0;
  const index = buckets.findIndex((number) => (before += number) >= share * count);
  const low = index ? bounds[index - 1] : 0;
  const high = bounds[index] ?? Infinity;
  const within = (share * count - (before - buckets[index])) / buckets[index];
  return { count, low, high, value: high === Infinity ? low : low + within * (high - low) };
}

// ---------------------------------------------------------------- words

function time(seconds) {
  if (seconds >= 1) return [short.format(seconds), "s"];
  const ms = seconds * 1000;
  return [ms < 0.995 ? ms.toFixed(2) : ms < 9.95 ? ms.toFixed(1) : ms.toFixed(0), "ms"];
}

const perSecond = (value) => (value && value < 10 ? value.toFixed(1) : whole.format(value));
const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;
const plural = (count, word) => `${whole.format(count)} ${word}${count === 1 ? "" : "s"}`;

/** A sentence whose commands are between backticks. */
const coded = (text) => text.split("`").map((part, index) => (index % 2 ? element("code", {}, part) : part));

// ---------------------------------------------------------------- live figures

const tiles = new Map();

/** Makes or updates a tile: one number, its unit, a line below, and how it went during the last minute. */
function tile(name, [number, unit], below, course) {
  let drawn = tiles.get(name);
  if (!drawn) {
    drawn = {
      number: element("span", { className: "number" }),
      unit: element("span", { className: "unit" }),
      below: element("span", { className: "below" }),
      line: document.createElementNS(SVG, "polyline"),
      course: [],
    };
    const chart = document.createElementNS(SVG, "svg");
    chart.setAttribute("viewBox", "0 0 60 20");
    chart.setAttribute("preserveAspectRatio", "none");
    chart.setAttribute("aria-hidden", "true");
    chart.append(drawn.line);
    const value = element("dd", {}, element("span", { className: "value" }, drawn.number, " ", drawn.unit), drawn.below, chart);
    at("tiles").append(element("div", { className: "tile", id: `tile-${name.toLowerCase().replace(/\W+/g, "-")}` }, element("dt", {}, name), value));
    tiles.set(name, drawn);
  }
  write(drawn.number, number);
  write(drawn.unit, unit);
  write(drawn.below, below);
  drawn.course.push(course ?? null);
  if (drawn.course.length > HISTORY_S) drawn.course.shift();
  const most = Math.max(...drawn.course) || 1;
  const start = HISTORY_S - drawn.course.length;
  const points = drawn.course.flatMap((value, index) => (value === null ? [] : [`${start + index},${19 - (18 * value) / most}`]));
  drawn.line.setAttribute("points", points.join(" "));
}

/** Text that did not change is left alone, for those who select or hear it. */
function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function drawLive(samples, key) {
  const now = found(samples.at(-1), key);
  const answers = rate(samples, key, (model) => model.success);
  tile("Throughput", [answers === null ? "–" : perSecond(answers), "answers/s"], `${whole.format(now.success)} in all`, answers);
  for (const [name, share] of [["Latency p50", 0.5], ["Latency p99", 0.99]]) {
    const { count, low, high, value } = percentile(samples, key, share);
    const told = value !== undefined;
    const range = told && (high === Infinity ? `above ${short.format(low)} s` : `between ${short.format(low * 1000)} and ${short.format(high * 1000)} ms`);
    tile(name, told ? time(value) : ["–", ""], told ? range : `${Math.min(count, ENOUGH[share])} of ${ENOUGH[share]} answers needed`, value);
  }
  tile("Queue", [whole.format(now.queued_rows), now.queued_rows === 1 ? "row" : "rows"], `of ${whole.format(now.max_queue_rows)} that may wait`, now.queued_rows);
  const pair = span(samples, key, FILL_S);
  const batches = pair ? pair[1].batches - pair[0].batches : 0;
  const fill = batches ? (pair[1].rows - pair[0].rows) / batches : null;
  const full = fill === null ? "no batch just now" : `${whole.format((100 * fill) / now.max_batch_rows)} % of ${now.max_batch_rows}`;
  tile("Batch fill", [fill === null ? "–" : short.format(fill), fill === null ? "" : fill === 1 ? "row" : "rows"], full, fill);
  const errors = rate(samples, key, failures);
  const reasons = Object.entries(now.failures).filter(([, count]) => count);
  const kinds = { REJECTED: "refused", CANCELED: "given up", BACKEND: "model failed", OTHER: "bad request" };
  const told = reasons.map(([reason, count]) => `${whole.format(count)} ${kinds[reason] ?? reason.toLowerCase()}`).join(", ");
  tile("Errors", [errors === null ? "–" : perSecond(errors), "per s"], told || "none so far", errors);
}

// ---------------------------------------------------------------- models

let subject = null; // key of the model that is asked and followed
let drawnModels = "";
const rates = new Map();

function drawModels(status) {
  const { models } = status;
  if (!models.some((model) => keyOf(model) === subject)) choose(models[0] ? keyOf(models[0]) : null, status);
  const stable = models.map(({ name, version, ready, variant, runner, device, threads, chosen, verdict, row_shape, labels, task }) =>
    [name, version, ready, variant, runner, device, threads, chosen, verdict, row_shape, labels, task]);
  if (drawnModels === JSON.stringify(stable)) return;
  drawnModels = JSON.stringify(stable);
  rates.clear();
  at("models-hint").hidden = models.length < 2;
  const focused = document.activeElement?.name === "model";
  at("models").replaceChildren(...models.map((model) => modelItem(model, models.length > 1)));
  if (focused) document.querySelector("input[name=model]:checked")?.focus();
}

function modelItem(model, several) {
  const key = keyOf(model);
  const title = [element("span", { className: "name" }, model.name), " ", element("span", { className: "version" }, `version ${model.version}`)];
  const running = element("span", { className: "rate" });
  rates.set(key, running);
  const input = element("input", { type: "radio", name: "model", value: key, checked: key === subject });
  input.addEventListener("change", () => choose(key, latest));
  const [height, width, channels] = model.row_shape;
  const facts = {
    Variant: model.variant,
    Runner: model.runner,
    Device: model.device,
    Threads: `${model.threads}`,
    Takes: `${height} × ${width}, ${channels === 1 ? "grey" : channels === 3 ? "colour" : plural(channels, "channel")}`,
    Answers: `${plural(model.labels, "label")}${model.task === "multilabel" ? ", any number at once" : ""}`,
  };
  const listed = Object.entries(facts).map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)));
  const said = model.verdict.replace(`${model.name} ${model.version}: `, ""); // what the title says already
  const verdict = model.ready ? said || "golden set not replayed" : "does not answer at present";
  const passed = model.ready && model.verdict;
  return element("li", { className: "model" },
    element("h3", {}, several ? element("label", {}, input, ...title) : element("span", {}, ...title), running),
    element("dl", { className: "facts" }, ...listed),
    element("p", { className: passed ? "verdict passed" : "verdict" }, verdict),
    element("p", { className: "chosen" }, ...coded(model.chosen ? `Chosen ${model.chosen}` : "Chosen by the application")));
}

function choose(key, status) {
  if (key !== subject) {
    subject = key;
    for (const drawn of tiles.values()) drawn.course = [];
  }
  const model = status && key && found(status, key);
  const said = model && status.models.length > 1 ? `${model.name}, version ${model.version}` : "";
  for (const line of document.querySelectorAll(".subject")) write(line, said);
  if (status === latest && latest && key) {
    drawLive(histories.get(latest.instance), key);
    if (picture) classify(picture);
  }
}

// ---------------------------------------------------------------- the state of the server

let latest = null;
let timer = 0;
let asking = false;
const unlock = unlocking(() => poll());

function next(delay) {
  clearTimeout(timer);
  if (!document.hidden && !unlock.locked()) timer = setTimeout(poll, delay);
}

async function poll() {
  if (asking) return;
  asking = true;
  let delay = POLL_MS;
  try {
    draw(await (await ask("status", { signal: AbortSignal.timeout(PATIENCE_MS) })).json());
  } catch (error) {
    delay = AWAY_MS;
    refused(error instanceof Refusal ? error : new Refusal(0, "The server does not answer."));
  }
  asking = false;
  next(delay);
}

function draw(status) {
  const samples = remember(status);
  unlock.hide();
  at("content").hidden = false;
  at("forget").hidden = !token();
  document.body.classList.remove("away");
  drawModels(status);
  latest = status;
  const ready = status.models.filter((model) => model.ready).length;
  const all = status.models.length;
  write(at("state"), ready === all ? `${plural(all, "model")} ready` : `${ready} of ${plural(all, "model")} ready`);
  for (const [key, node] of rates) {
    const value = rate(samples, key, (model) => model.success);
    write(node, value === null ? "" : `${perSecond(value)} /s`);
  }
  if (subject) drawLive(samples, subject);
}

function refused(refusal) {
  document.body.classList.add("away");
  if (refusal.status === 401) {
    at("content").hidden = true;
    at("forget").hidden = true;
    write(at("state"), "Locked");
    unlock.show();
  } else {
    write(at("state"), refusal.status ? refusal.message : `${refusal.message} Trying again.`);
  }
}

document.addEventListener("visibilitychange", () => next(0));
at("forget").addEventListener("click", () => {
  keepToken("");
  poll();
});

// ---------------------------------------------------------------- a picture

let picture = null;
let question = null;

async function classify(file) {
  picture = file;
  question?.abort();
  const mine = (question = new AbortController());
  show(file);
  const model = latest && subject && found(latest, subject);
  if (!model) return;
  if (file.size > latest.max_body_bytes) {
    problem(`${file.name || "The picture"} has ${whole.format(file.size)} bytes, the server takes at most ${whole.format(latest.max_body_bytes)}.`);
    return;
  }
  at("answer").setAttribute("aria-busy", "true");
  const path = `v2/models/${encodeURIComponent(model.name)}/versions/${encodeURIComponent(model.version)}/classify?top=5`;
  const headers = { "Content-Type": file.type || "application/octet-stream", "X-Server-Timing": "1" };
  const begun = performance.now();
  try {
    const response = await ask(path, { method: "POST", body: file, headers, signal: mine.signal });
    const { predictions } = await response.json();
    answered(model, predictions, phases(response.headers.get("Server-Timing")), performance.now() - begun);
  } catch (error) {
    if (mine.signal.aborted) return;
    if (error.status === 401) refused(error);
    problem(error instanceof Refusal ? error.message : "The answer could not be read.");
  }
  at("answer").removeAttribute("aria-busy");
}

function show(file) {
  const preview = at("preview");
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.alt = file.name ? `The picture ${file.name}` : "The picture";
  preview.hidden = false;
  at("hint").hidden = true;
  write(at("choose"), "Choose another");
  write(at("file-name"), file.name ?? "");
}

function answered(model, predictions, timings, total) {
  const several = model.task === "multilabel";
  const best = predictions.map(({ label, score }, index) => {
    const bar = element("span", { className: "bar" });
    bar.style.width = `${100 * score}%`; // set by script: a style attribute is what the page's policy forbids
    const track = element("span", { className: several ? "track halved" : "track", ariaHidden: "true" }, bar);
    return element("li", { className: (several ? score > 0.5 : index === 0) ? "said" : "" },
      element("span", { className: "label" }, label), " ", element("span", { className: "score" }, percent(score)), track);
  });
  const times = [...timings, ["round trip", time(total / 1000)]].map(([name, words]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, words.join(" "))));
  at("answer").replaceChildren(
    element("ol", { className: "top" }, ...best),
    several ? element("p", { className: "quiet" }, "Each label is judged by itself; those above 50\u00a0% are said to be there.") : "",
    element("dl", { className: "times" }, ...times));
}

function problem(text) {
  at("answer").replaceChildren(element("p", { className: "problem" }, text));
  at("answer").removeAttribute("aria-busy");
}

/** [[name, [value, unit]], ...] of a Server-Timing field: `queue;dur=0.1, batch;desc="3 rows"`, in milliseconds. */
function phases(field) {
  return (field ?? "").split(",").flatMap((entry) => {
    const [, name, kind, value] = entry.match(/^\s*([\w-]+);(dur|desc)="?([^"]*)"?$/) ?? [];
    return name ? [[name, kind === "dur" ? time(Number(value) / 1000) : [value]]] : [];
  });
}

at("file").addEventListener("change", ({ target }) => {
  if (target.files[0]) classify(target.files[0]);
  target.value = ""; // the same one may be chosen again
});
document.addEventListener("paste", ({ clipboardData }) => {
  if (clipboardData.files[0] && latest) classify(clipboardData.files[0]);
});
// a picture that misses the field by a little must not replace the page
for (const kind of ["dragover", "drop", "dragleave"]) {
  document.addEventListener(kind, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    if (kind !== "dragleave") event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragover");
    const file = kind === "drop" && event.dataTransfer.files[0];
    if (file && latest && !unlock.locked()) classify(file);
  });
}
at("preview").addEventListener("error", () => {
  at("preview").hidden = true;
});

poll();
