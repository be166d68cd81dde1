// Makes DOM nodes, and changes nodes in place. In: the nodes of inline.js, texts. Out: elements and Text
// nodes. A string always becomes a Text node. Not known here: Markdown's syntax.

const WEB = /^(?:https?:|mailto:)/i;
const CLASSES = { strong: "strong", emphasis: "em", strike: "del", code: "code", math: "span", html: "span" };

/** Return a new element with these properties and children; a child may be a string. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Return DOM nodes for the nodes of a text. */
export const inlineNodes = (nodes) => nodes.map(inlineNode);

function inlineNode(node) {
  switch (node.kind) {
    case "text":
    case "newline":
      return document.createTextNode(node.text);
    case "break":
      return element("br");
    case "link":
      return link(node, inlineNodes(node.children));
    case "image":
      return image(node);
    default: {
      const made = element(CLASSES[node.kind], {}, ...(node.children ? inlineNodes(node.children) : [node.text]));
      if (node.kind === "math") made.className = "math";
      if (node.kind === "html") made.className = "markup";
      return made;
    }
  }
}

/** Only a link to the web or to a mail address is a link; `data-to` shows where another one leads. */
function link({ href, title }, children) {
  const made = element("a", { title }, ...children);
  const address = encoded(href);
  if (WEB.test(address)) Object.assign(made, { href: address, rel: "noopener noreferrer", target: "_blank" });
  else made.dataset.to = address;
  return made;
}

/** The page loads nothing from other hosts: an image is a link with its description. */
function image(node) {
  const made = link(node, [plainText(node.children) || node.href || "image"]);
  made.className = "image";
  return made;
}

const plainText = (nodes) => nodes.map(({ text, children }) => (children ? plainText(children) : text)).join("");

/** Encode what may not stand in an address, and leave what is encoded already. */
const encoded = (href) => encodeURI(href.toWellFormed()).replace(/%25([0-9a-fA-F]{2})/g, "%$1");

/** Give an element these children. Nodes that are equal stay, and a text that only grows stays a node. */
export function morph(parent, wanted) {
  let old = parent.firstChild;
  for (const each of wanted) {
    const next = typeof each === "string" ? document.createTextNode(each) : each;
    const after = old?.nextSibling ?? null;
    if (old === null) parent.append(next);
    else if (!adapt(old, next)) old.replaceWith(next);
    old = after;
  }
  while (old !== null) {
    const after = old.nextSibling;
    old.remove();
    old = after;
  }
}

/** Make `old` equal to `next` in place. Return whether that was possible. */
function adapt(old, next) {
  if (old.nodeType !== next.nodeType) return false;
  if (old.nodeType === Node.TEXT_NODE) {
    if (next.data.startsWith(old.data)) old.appendData(next.data.slice(old.data.length));
    else if (old.data !== next.data) old.data = next.data;
    return true;
  }
  if (!old.cloneNode(false).isEqualNode(next.cloneNode(false))) return false;
  morph(old, [...next.childNodes]);
  return true;
}
