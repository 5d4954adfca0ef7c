// The page at /docs: what /openapi.json says, to be read. One section a tag, one fold a route.

import { ask, element, Refusal, token, unlocking } from "./common.js";

const METHODS = ["get", "post"];
const content = document.getElementById("content");
const state = document.getElementById("state");
const unlock = unlocking(() => load());
let root = {};

async function load() {
  try {
    root = await (await ask("openapi.json")).json();
  } catch (error) {
    content.hidden = true;
    state.textContent = error.status === 401 ? "Locked" : error instanceof Refusal ? error.message : "The description could not be read.";
    if (error.status === 401) unlock.show();
    return;
  }
  unlock.hide();
  content.hidden = false;
  document.getElementById("raw").hidden = Boolean(token()); // a link can't carry it
  state.textContent = `API, version ${root.info.version}`;
  content.replaceChildren(...paragraphs(root.info.description), ...root.tags.map(section));
}

function section(tag) {
  const title = element("h2", {}, tag.name);
  const folds = Object.entries(root.paths).flatMap(([path, item]) =>
    METHODS.filter((method) => item[method]?.tags.includes(tag.name)).map((method) => fold(method, path, item[method])));
  return element("section", {}, element("div", { className: "title" }, title, element("p", {}, tag.description)), ...folds);
}

function fold(method, path, operation) {
  const summary = element("summary", {}, element("span", { className: "method" }, method.toUpperCase()), element("code", {}, path), element("span", {}, operation.summary));
  const parts = [...paragraphs(operation.description)];
  const parameters = (operation.parameters ?? []).map(resolved);
  if (parameters.length) parts.push(element("h4", {}, "Parameters"), rows(parameters.map((each) => [each.name, `${each.in}: ${outline(each.schema)}. ${each.description}`])));
  const body = operation.requestBody;
  if (body) parts.push(element("h4", {}, "Body"), ...paragraphs(body.description), ...contents(body.content));
  for (const [status, response] of Object.entries(operation.responses).map(([status, each]) => [status, resolved(each)])) {
    if (status !== "200") continue;
    parts.push(element("h4", {}, "Answer"), ...paragraphs(response.description), ...contents(response.content));
  }
  const errors = Object.entries(operation.responses).filter(([status]) => status !== "200");
  if (errors.length) parts.push(element("h4", {}, "Errors"), rows(errors.map(([status, each]) => [status, resolved(each).description])));
  return element("details", {}, summary, element("div", {}, ...parts));
}

const paragraphs = (text) => (text ?? "").split("\n\n").filter(Boolean).map((each) => element("p", {}, each));
const rows = (pairs) => element("dl", { className: "rows" }, ...pairs.map(([name, text]) => element("div", {}, element("dt", {}, element("code", {}, name)), element("dd", {}, text))));

function contents(described = {}) {
  const kinds = Map.groupBy(Object.entries(described), ([, { schema }]) => outline(schema));
  return [...kinds].flatMap(([text, entries]) => [
    element("p", {}, element("code", {}, entries.map(([kind]) => kind).join(", "))),
    ...(text === "bytes" || text === "string" ? [] : [element("pre", { tabIndex: 0 }, text)]),
  ]);
}

function resolved(value) {
  return value.$ref ? value.$ref.slice(2).split("/").reduce((at, key) => at[key.replaceAll("~1", "/").replaceAll("~0", "~")], root) : value;
}

/** A schema as one would write the JSON, with types for values. */
function outline(schema, indent = "") {
  const { type, properties, required = [], items, enum: values, const: only, anyOf, oneOf, additionalProperties, format, ...rest } = resolved(schema);
  if (only !== undefined) return JSON.stringify(only);
  if (values) return values.map((value) => JSON.stringify(value)).join(" | ");
  if (anyOf || oneOf) return [...new Set((anyOf ?? oneOf).map((each) => outline(each, indent)))].join(" | ");
  if (rest.prefixItems) return `[${rest.prefixItems.map((each) => outline(each, indent)).join(", ")}]`;
  if (type === "array") return items ? `[${outline(items, indent)}, …]` : "[…]";
  if (properties) {
    const inner = `${indent}  `;
    const lines = Object.entries(properties).map(([name, each]) => {
      const said = each.description ?? (each.$ref ? undefined : resolved(each).description);
      return `${inner}${JSON.stringify(name)}${required.includes(name) ? "" : "?"}: ${outline(each, inner)}${said ? `  // ${said}` : ""}`;
    });
    return `{\n${lines.join("\n")}\n${indent}}`;
  }
  if (type === "object") return additionalProperties ? `{"…": ${outline(additionalProperties, indent)}}` : "{…}";
  if (format === "binary") return "bytes";
  return bounded([type ?? "anything"].flat().join(" | "), rest);
}

function bounded(type, { minimum, maximum }) {
  return [type, ...(minimum === undefined ? [] : ["from", minimum]), ...(maximum === undefined ? [] : ["to", maximum])].join(" ");
}

load();
