// Shows the description of the API. In: openapi.json, and a key if the server needs one. Out: one
// section for each route and each schema. It knows OpenAPI 3.1 as far as this server uses it.

const KEY_ITEM = "penstock.key"; // the page at / uses the same item
const at = (id) => document.getElementById(id);

/** Make an element. Text is never parsed as HTML. */
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const code = (text) => make("code", {}, text);

/** Text with `code` in it. */
const line = (text) => text.split(/`([^`]+)`/).map((part, number) => (number % 2 ? code(part) : part));

/** Paragraphs and lists of text. */
function prose(text = "") {
  return text.split(/\n\n+/).filter(Boolean).map((block) => {
    if (!block.startsWith("- ")) return make("p", {}, ...line(block));
    const items = block.slice(2).split("\n- ");
    return make("ul", {}, ...items.map((item) => make("li", {}, ...line(item))));
  });
}

const joined = (lists, separator) => lists.flatMap((nodes, number) => (number ? [separator, ...nodes] : nodes));

/** What values a schema allows, in one line. */
function type(schema) {
  if (schema.$ref) {
    const name = schema.$ref.split("/").at(-1);
    return [make("a", { href: `#${name}` }, name)];
  }
  if ("const" in schema) return [code(JSON.stringify(schema.const))];
  if (schema.enum) return joined(schema.enum.map((value) => [code(JSON.stringify(value))]), ", ");
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return joined(choices.map(type), " or ");
  if (schema.contentSchema) return ["events, each with the data ", ...type(schema.contentSchema.items)];
  if (schema.type === "array") return ["list of ", ...type(schema.items ?? {}), ...limits(schema)];
  if (schema.type === "object" && typeof schema.additionalProperties === "object") {
    return ["object of ", ...type(schema.additionalProperties)];
  }
  return [schema.type ?? "any value", ...limits(schema)];
}

const LIMITS = {
  minimum: "at least", exclusiveMinimum: "above", maximum: "at most",
  minLength: "characters: at least", maxLength: "characters: at most",
  minItems: "items: at least", maxItems: "items: at most", pattern: "pattern",
};

function limits(schema) {
  const said = Object.entries(LIMITS).filter(([name]) => name in schema).map(([name, words]) => `${words} ${schema[name]}`);
  return said.length ? [` (${said.join(", ")})`] : [];
}

/** Rows of fields, parameters or headers: `[name, note, schema, description]`. */
function rows(entries) {
  return make("dl", {}, ...entries.flatMap(([name, note, schema, description]) => {
    const kind = make("p", {}, ...type(schema));
    if (schema.default !== undefined) kind.append(" · default ", code(JSON.stringify(schema.default)));
    return [make("dt", {}, code(name), make("small", {}, note)), make("dd", {}, kind, ...prose(description))];
  }));
}

const fields = ({ properties = {}, required = [] }) =>
  rows(Object.entries(properties).map(([name, schema]) => [name, required.includes(name) ? "required" : "", schema, schema.description]));

function section(id, heading, content) {
  return make("details", { id }, make("summary", {}, ...heading), ...content);
}

function operation(method, path, about, api) {
  const content = prose(about.description);
  content.push(make("h3", {}, "Parameters"), rows(about.parameters.map((each) =>
    [each.name, each.required ? `${each.in}, required` : each.in, each.schema, each.description])));
  for (const [media, { schema, example }] of Object.entries(about.requestBody?.content ?? {})) {
    content.push(make("h3", {}, "Request body"), make("p", {}, code(media), ": ", ...type(schema)));
    content.push(make("pre", {}, JSON.stringify(example, null, 2)));
  }
  for (const [status, response] of Object.entries(about.responses)) {
    content.push(make("h3", {}, status), ...prose(response.description));
    for (const [media, { schema }] of Object.entries(response.content ?? {})) {
      content.push(make("p", {}, code(media), ": ", ...type(schema)));
    }
    const headers = Object.keys(response.headers ?? {});
    content.push(make("p", {}, "Headers: ", ...joined(headers.map((name) => [make("a", { href: `#${name}` }, name)]), ", ")));
  }
  const open = about.security?.length === 0 && api.security;
  if (open) content.unshift(make("p", {}, "This route never needs a key."));
  const badge = make("strong", { class: `method ${method}` }, method);
  return section(about.operationId, [badge, code(path), make("span", {}, about.summary)], content);
}

function show(api) {
  at("version").textContent = `version ${api.info.version}`;
  const operations = Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, about]) => [method.toUpperCase(), path, about]));
  const { schemas, headers } = api.components;
  at("api").replaceChildren(
    ...prose(api.info.description),
    ...api.tags.flatMap(({ name, description }) => [
      make("h2", {}, name), ...prose(description),
      ...operations.filter(([, , about]) => about.tags.includes(name)).map((each) => operation(...each, api)),
    ]),
    make("h2", {}, "Response headers"),
    ...Object.entries(headers).map(([name, { description, schema }]) =>
      section(name, [code(name)], [make("p", {}, ...type(schema)), ...prose(description)])),
    make("h2", {}, "Schemas"),
    ...Object.entries(schemas).map(([name, schema]) =>
      section(name, [code(name)], [...prose(schema.description), schema.properties ? fields(schema) : make("p", {}, ...type(schema))])),
  );
  openTarget();
}

/** Open the section that the address names. */
function openTarget() {
  const target = at(decodeURIComponent(location.hash.slice(1)));
  if (target?.tagName !== "DETAILS") return;
  target.open = true;
  target.scrollIntoView();
}

async function load() {
  const key = sessionStorage.getItem(KEY_ITEM);
  const response = await fetch("openapi.json", key ? { headers: { Authorization: `Bearer ${key}` } } : {});
  at("key-form").hidden = response.status !== 401;
  at("status").textContent = response.ok || (response.status === 401 && !key) ? "" : (await response.json()).detail;
  if (response.ok) show(await response.json());
}

function report(error) {
  at("status").textContent = `The server cannot be reached: ${error.message}`;
}

at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY_ITEM, at("key").value.trim());
  load().catch(report);
});
addEventListener("hashchange", openTarget);
load().catch(report);
