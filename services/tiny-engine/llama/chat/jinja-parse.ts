// A part of Jinja, as large as the chat templates of small models need. What is not known is refused when the model is
// loaded, never guessed at: text, {{ }}, for, if, elif, else, set, and the expressions of jinja-run.ts.
// Whitespace as transformers sets it: trim_blocks and lstrip_blocks.

export class TemplateError extends Error {
  override readonly name = "TemplateError";
}

export type Node =
  | { readonly kind: "text"; readonly text: string }
  | { readonly kind: "print"; readonly value: Expression }
  | { readonly kind: "set"; readonly target: readonly string[]; readonly value: Expression }
  | {
      readonly kind: "if";
      readonly branches: readonly { readonly test: Expression | null; readonly body: readonly Node[] }[];
    }
  | { readonly kind: "for"; readonly name: string; readonly list: Expression; readonly body: readonly Node[] };

export type Expression =
  | { readonly kind: "literal"; readonly value: string | number | boolean | null }
  | { readonly kind: "name"; readonly name: string }
  | { readonly kind: "member"; readonly of: Expression; readonly key: Expression }
  | {
      readonly kind: "slice";
      readonly of: Expression;
      readonly from: Expression | null;
      readonly to: Expression | null;
    }
  | { readonly kind: "call"; readonly callee: Expression; readonly args: readonly Expression[] }
  | { readonly kind: "filter"; readonly of: Expression; readonly name: string }
  | { readonly kind: "is"; readonly of: Expression; readonly test: string; readonly negated: boolean }
  | { readonly kind: "not"; readonly of: Expression }
  | { readonly kind: "choose"; readonly test: Expression; readonly yes: Expression; readonly no: Expression | null }
  | { readonly kind: "binary"; readonly operator: string; readonly left: Expression; readonly right: Expression };

/** @throws TemplateError naming what is not understood. */
export function parseTemplate(source: string): Node[] {
  const tags = source.split(/(\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\})/s);
  const pieces: { tag: "text" | "print" | "block"; text: string }[] = [];
  tags.forEach((part, index) => {
    if (index % 2 === 0) {
      const text = withoutTagSpace(part, tags[index - 1], tags[index + 1]);
      if (text !== "") pieces.push({ tag: "text", text });
    } else if (!part.startsWith("{#")) {
      pieces.push({
        tag: part.startsWith("{{") ? "print" : "block",
        text: part
          .slice(2, -2)
          .replace(/^[-+]|[-+]$/g, "")
          .trim(),
      });
    }
  });
  let at = 0;

  /** Nodes up to a block that begins with one of `ends`, which is left for the caller. */
  const body = (ends: readonly string[]): Node[] => {
    const nodes: Node[] = [];
    for (; at < pieces.length; at++) {
      const { tag, text } = pieces[at]!;
      if (tag === "text") nodes.push({ kind: "text", text });
      else if (tag === "print") nodes.push({ kind: "print", value: new Parser(text).whole() });
      else {
        const word = /^\w+/.exec(text)?.[0] ?? "";
        if (ends.includes(word)) return nodes;
        nodes.push(block(word, text));
      }
    }
    if (ends.length > 0) throw new TemplateError(`the chat template lacks ${ends.at(-1)!}`);
    return nodes;
  };
  const block = (word: string, text: string): Node => {
    at++;
    const set = /^set\s+([\w.]+)\s*=(.*)$/s.exec(text);
    if (set !== null) {
      at--;
      return { kind: "set", target: set[1]!.split("."), value: new Parser(set[2]!).whole() };
    }
    const loop = /^for\s+(\w+)\s+in\s+(.*)$/s.exec(text);
    if (loop !== null)
      return { kind: "for", name: loop[1]!, list: new Parser(loop[2]!).whole(), body: body(["endfor"]) };
    if (word !== "if") throw new TemplateError(`the chat template uses {% ${word} %}, which this engine doesn't know`);
    const branches: { test: Expression | null; body: readonly Node[] }[] = [];
    for (let head = text; ; head = pieces[at++]!.text) {
      const test = head === "else" ? null : new Parser(head.replace(/^(el)?if\b/, "")).whole();
      branches.push({ test, body: body(["elif", "else", "endif"]) });
      if (pieces[at]!.text === "endif") return { kind: "if", branches };
    }
  };
  return body([]);
}

/** A block alone on its line leaves no trace of it; a dash takes all the space on its side. */
function withoutTagSpace(part: string, before: string | undefined, after: string | undefined): string {
  let text = part;
  if (after?.[2] === "-") text = text.trimEnd();
  else if (after?.startsWith("{{") === false)
    text = text.replace(before === undefined ? /(^|\n)[ \t]+$/ : /(\n)[ \t]+$/, "$1");
  if (before?.at(-3) === "-") text = text.trimStart();
  else if (before?.startsWith("{{") === false) text = text.replace(/^\n/, "");
  return text;
}

const TOKEN = /\s*(?:("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(\d+)|(\w+)|(==|!=|<=|>=|[-+~<>()[\].,|:%]))/sy;
/** Loosest first. */
const LEVELS: readonly (readonly string[])[] = [
  ["or"],
  ["and"],
  ["==", "!=", "<", ">", "<=", ">=", "in"],
  ["+", "-", "~"],
  ["%"],
];
const NAMED: Readonly<Record<string, boolean | null>> = {
  true: true,
  True: true,
  false: false,
  False: false,
  none: null,
  None: null,
};

class Parser {
  readonly #tokens: string[] = [];
  readonly #source: string;
  #at = 0;

  constructor(source: string) {
    this.#source = source.trim();
    TOKEN.lastIndex = 0;
    for (let end = 0; end < this.#source.length; end = TOKEN.lastIndex) {
      const found = TOKEN.exec(this.#source);
      if (found === null) throw this.#unknown();
      this.#tokens.push(found[0].trim());
    }
  }

  whole(): Expression {
    const value = this.#choice();
    if (this.#at < this.#tokens.length) throw this.#unknown();
    return value;
  }

  #unknown(): TemplateError {
    return new TemplateError(
      `the chat template has ${JSON.stringify(this.#source)}, which this engine doesn't understand`,
    );
  }

  #take(...wanted: string[]): boolean {
    if (!wanted.includes(this.#tokens[this.#at] ?? "")) return false;
    this.#at++;
    return true;
  }

  #need(wanted: string): void {
    if (!this.#take(wanted)) throw this.#unknown();
  }

  #choice(): Expression {
    const yes = this.#level(0);
    if (!this.#take("if")) return yes;
    const test = this.#level(0);
    return { kind: "choose", test, yes, no: this.#take("else") ? this.#choice() : null };
  }

  #level(level: number): Expression {
    if (level === LEVELS.length) return this.#postfix(this.#atom());
    if (level === 2 && this.#take("not")) return { kind: "not", of: this.#level(2) };
    let left = this.#level(level + 1);
    for (;;) {
      const operator = this.#tokens[this.#at] ?? "";
      const isNotIn = level === 2 && operator === "not" && this.#tokens[this.#at + 1] === "in";
      if (!isNotIn && !LEVELS[level]!.includes(operator)) return left;
      this.#at += isNotIn ? 2 : 1;
      const both: Expression = {
        kind: "binary",
        operator: isNotIn ? "in" : operator,
        left,
        right: this.#level(level + 1),
      };
      left = isNotIn ? { kind: "not", of: both } : both;
    }
  }

  #atom(): Expression {
    const token = this.#tokens[this.#at++];
    if (token === undefined) throw this.#unknown();
    if (token === "(") {
      const inner = this.#choice();
      this.#need(")");
      return inner;
    }
    if (token === "-")
      return { kind: "binary", operator: "-", left: { kind: "literal", value: 0 }, right: this.#postfix(this.#atom()) };
    if (/^["']/.test(token)) return { kind: "literal", value: unescape(token.slice(1, -1)) };
    if (/^\d/.test(token)) return { kind: "literal", value: Number(token) };
    if (!/^\w/.test(token)) throw this.#unknown();
    return Object.hasOwn(NAMED, token) ? { kind: "literal", value: NAMED[token]! } : { kind: "name", name: token };
  }

  #postfix(start: Expression): Expression {
    let value = start;
    for (;;) {
      if (this.#take(".")) {
        value = { kind: "member", of: value, key: { kind: "literal", value: this.#tokens[this.#at++] ?? "" } };
      } else if (this.#take("[")) {
        value = this.#index(value);
      } else if (this.#take("(")) {
        const args: Expression[] = [];
        while (!this.#take(")")) {
          args.push(this.#choice());
          this.#take(",");
        }
        value = { kind: "call", callee: value, args };
      } else if (this.#take("|")) {
        value = { kind: "filter", of: value, name: this.#tokens[this.#at++] ?? "" };
      } else if (this.#take("is")) {
        const negated = this.#take("not");
        value = { kind: "is", of: value, test: this.#tokens[this.#at++] ?? "", negated };
      } else {
        return value;
      }
    }
  }

  #index(of: Expression): Expression {
    const from = this.#take(":") ? null : this.#choice();
    if (from !== null && this.#take("]")) return { kind: "member", of, key: from };
    if (from !== null) this.#need(":");
    const to = this.#take("]") ? null : this.#choice();
    if (to !== null) this.#need("]");
    return { kind: "slice", of, from, to };
  }
}

function unescape(text: string): string {
  return text.replace(/\\(.)/gs, (_, letter: string) => ({ n: "\n", t: "\t", r: "\r" })[letter] ?? letter);
}
