// Renders Markdown with the page's own modules and compares it with CommonMark's examples.
// Runs in the browser, as a function body: `return` gives the tests its functions.
const { Markdown } = await import("/page/markdown.js");

/** Render a text that arrives in these pieces, and return its element. */
function render(pieces, isEnded = true) {
  const box = document.createElement("div");
  const markdown = new Markdown(box);
  for (const piece of pieces) {
    markdown.append(piece);
    markdown.flush();
  }
  if (isEnded) markdown.end();
  return box;
}

/** Return the page's elements in the form of CommonMark's examples. */
function asExample(box) {
  const copy = box.cloneNode(true);
  const all = (selector) => [...copy.querySelectorAll(selector)];
  for (const each of all("figure.code")) {
    const code = each.querySelector("code");
    const text = code.textContent;
    code.textContent = text && `${text}\n`;
    if (code.className === "") code.removeAttribute("class");
    const pre = document.createElement("pre");
    pre.append(code);
    each.replaceWith(pre);
  }
  for (const each of all("[data-level]")) {
    const heading = document.createElement(`h${each.dataset.level}`);
    heading.append(...each.childNodes);
    each.replaceWith(heading);
  }
  for (const each of all("a")) {
    const made = document.createElement(each.className === "image" ? "img" : "a");
    const to = each.getAttribute("href") ?? each.dataset.to;
    made.setAttribute(made.localName === "img" ? "src" : "href", to);
    if (made.localName === "img") made.setAttribute("alt", each.textContent === each.dataset.to ? "" : each.textContent);
    else made.append(...each.childNodes);
    if (each.title) made.title = each.title;
    each.replaceWith(made);
  }
  for (const each of all(".tight > li > p")) each.replaceWith(...each.childNodes, "\n");
  for (const each of all("ul, ol")) each.removeAttribute("class");
  // Raw HTML is shown as text. Here it becomes markup again, in a document that runs no scripts.
  const markup = [];
  for (const each of all(".markup")) each.replaceWith(`\u0001${markup.push(each.textContent + (each.localName === "pre" ? "\n" : "")) - 1}\u0001`);
  return copy.innerHTML.replace(/\u0001(\d+)\u0001/g, (_, n) => markup[n]);
}

/** Return HTML without differences that no reader sees. */
function normal(html) {
  const { body } = new DOMParser().parseFromString(html.trim(), "text/html");
  const blocks = "p,li,ul,ol,pre,blockquote,hr,h1,h2,h3,h4,h5,h6,div,table,tr,td,th,body,br";
  const clean = (parent) => {
    for (const node of [...parent.childNodes]) {
      if (node.nodeType === 1) {
        if (node.localName !== "pre") clean(node);
        for (const name of ["src", "href"]) {
          const value = node.getAttribute(name);
          if (value !== null) node.setAttribute(name, decodeURI(value.replaceAll("%25", "%2525")));
        }
        const sorted = [...node.attributes].sort((a, b) => a.name.localeCompare(b.name));
        for (const each of sorted) node.removeAttribute(each.name);
        for (const each of sorted) node.setAttribute(each.name, each.value);
      } else if (node.nodeType === 3) {
        const [before, after] = [node.previousSibling, node.nextSibling];
        const isEdge = (each) => each === null ? parent.matches(blocks) : each.nodeType === 1 && each.matches(blocks);
        let text = node.data.replace(/\s+/g, " ");
        if (isEdge(before)) text = text.trimStart();
        if (isEdge(after)) text = text.trimEnd();
        if (text === "") node.remove();
        else node.data = text;
      }
    }
  };
  body.normalize();
  clean(body);
  return body.innerHTML;
}

return { Markdown, render, asExample, normal };
