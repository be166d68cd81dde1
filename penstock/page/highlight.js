// Quiet colors for code, line by line: comments, strings, numbers, keywords. In: the language's name, then
// its lines. Out: parts of each line, [kind or "", text]. It knows families of languages, not their
// grammars: a wrong color is harmless, and a slow page is not.
import { matchAt } from "./references.js";

const words = (text) => new Set(text.split(" "));

const C_WORDS = words(
  "abstract as async await auto bool boolean break byte case catch char class const constexpr continue crate " +
  "debugger default defer delete do double else enum export extends extern false final finally float fn for " +
  "foreach from func function go goto if impl implements import in inline instanceof int interface internal " +
  "is let long loop match mod move mut namespace native new nil null nullptr of operator override package " +
  "private protected pub public readonly ref return select self short signed sizeof static struct super " +
  "switch template this throw throws trait true try type typedef typename typeof undefined union unsafe " +
  "unsigned use using val var virtual void volatile when where while with yield",
);
const PYTHON_WORDS = words(
  "and as assert async await break case class continue def del elif else except False finally for from global " +
  "if import in is lambda match None nonlocal not or pass raise return self True try while with yield",
);
const SHELL_WORDS = words(
  "case cd do done echo elif else esac eval exec exit export fi for function if in local read return set " +
  "shift source then trap unset until while sudo",
);
const SQL_WORDS = words(
  "add all alter and as asc between by case column constraint create cross default delete desc distinct drop " +
  "else end exists foreign from full group having in index inner insert into is join key left like limit not " +
  "null offset on or order outer primary references right select set table then union unique update using " +
  "values view when where with",
);
const DATA_WORDS = words("true false null yes no on off");
const RUBY_WORDS = words(
  "alias and begin break case class def do else elsif end ensure false for function if in local module next nil " +
  "not or repeat rescue return self super then true unless until when while yield",
);

const C = { line: ["//"], block: [["/*", "*/"]], quotes: `"'\``, words: C_WORDS };
const PYTHON = { line: ["#"], block: [['"""', '"""'], ["'''", "'''"]], quotes: `"'`, words: PYTHON_WORDS };
const SHELL = { line: ["#"], block: [], quotes: `"'`, words: SHELL_WORDS };
const SQL = { line: ["--"], block: [["/*", "*/"]], quotes: `'"`, words: SQL_WORDS, ignoresCase: true };
const DATA = { line: ["#"], block: [], quotes: `"'`, words: DATA_WORDS };
const RUBY = { line: ["#"], block: [["=begin", "=end"]], quotes: `"'`, words: RUBY_WORDS };
const LUA = { line: ["--"], block: [["--[[", "]]"]], quotes: `"'`, words: RUBY_WORDS };
const MARKUP = { line: [], block: [["<!--", "-->"]], quotes: `"'`, words: new Set() };
const CSS = { line: [], block: [["/*", "*/"]], quotes: `"'`, words: words("important inherit initial none auto") };

const FAMILIES = [
  [C, "c h cpp c++ cc hpp cs csharp java js javascript jsx mjs ts typescript tsx go golang rust rs swift kotlin kt scala php dart zig json5 jsonc json proto objc groovy"],
  [PYTHON, "python py python3 pycon"],
  [SHELL, "sh bash shell zsh fish console dockerfile docker make makefile powershell ps1"],
  [SQL, "sql postgres postgresql mysql sqlite"],
  [DATA, "yaml yml toml ini conf env properties"],
  [RUBY, "ruby rb r elixir ex perl pl"],
  [LUA, "lua haskell hs"],
  [MARKUP, "html xml svg vue"],
  [CSS, "css scss less"],
];
const FAMILY_OF = new Map(FAMILIES.flatMap(([family, names]) => names.split(" ").map((name) => [name, family])));
const WORD = /[A-Za-z_][\w]*/y;
const NUMBER = /(?:0[xXbBoO][\da-fA-F_]+|\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?)/y;
const PLAIN = /[\s(){}[\],;:.=<>!&|^%~?@$\\]+/y;

/** Colors the lines of one block of code. */
export class Highlighter {
  #family;
  #until = null; // the end of the comment or string that began on an earlier line
  #kind = "";

  constructor(language) {
    this.#family = FAMILY_OF.get(language) ?? null;
  }

  /** Return the parts of the next complete line. */
  line(text) {
    return this.#parts(text);
  }

  /** Return the parts of the last line, which will come again. */
  tail(text) {
    const [until, kind] = [this.#until, this.#kind];
    const parts = this.#parts(text);
    [this.#until, this.#kind] = [until, kind];
    return parts;
  }

  #parts(text) {
    if (this.#family === null || text === "") return text === "" ? [] : [["", text]];
    const parts = [];
    const push = (kind, part) => {
      if (parts.at(-1)?.[0] === kind) parts.at(-1)[1] += part;
      else if (part !== "") parts.push([kind, part]);
    };
    let at = 0;
    while (at < text.length) {
      const [kind, end] = this.#until ? this.#block(text, at, at) : this.#next(text, at);
      push(kind, text.slice(at, end));
      at = end;
    }
    return parts;
  }

  /** Return the kind and the end of what begins at a place. */
  #next(text, at) {
    const { line, block, quotes, words: keywords, ignoresCase } = this.#family;
    for (const [open, close] of block) {
      if (!text.startsWith(open, at)) continue;
      this.#until = close;
      this.#kind = open[0] === '"' || open[0] === "'" ? "string" : "comment";
      return this.#block(text, at, at + open.length);
    }
    if (line.some((mark) => text.startsWith(mark, at)) && !/\w/.test(text[at - 1] ?? "")) return ["comment", text.length];
    if (quotes.includes(text[at])) return ["string", endOfString(text, at)];
    const word = matchAt(WORD, text, at)?.[0];
    if (word) return [keywords.has(ignoresCase ? word.toLowerCase() : word) ? "keyword" : "", at + word.length];
    const number = matchAt(NUMBER, text, at)?.[0];
    if (number) return ["number", at + number.length];
    return ["", at + (matchAt(PLAIN, text, at)?.[0].length ?? 1)];
  }

  #block(text, at, from) {
    const end = text.indexOf(this.#until, from);
    if (end < 0) return [this.#kind, text.length];
    const length = this.#until.length;
    this.#until = null;
    return [this.#kind, end + length];
  }
}

/** A string ends on its line. An apostrophe that nothing closes is only a character. */
function endOfString(text, at) {
  for (let end = at + 1; end < text.length; end += 1) {
    if (text[end] === "\\") end += 1;
    else if (text[end] === text[at]) return end + 1;
  }
  return at + 1;
}
