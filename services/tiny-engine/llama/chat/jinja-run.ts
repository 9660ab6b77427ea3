// Renders a parsed template. Values are those of JSON; a name that nobody set is undefined, which prints as nothing.
import { TemplateError, type Expression, type Node } from "./jinja-parse.ts";

export type Value = undefined | null | string | number | boolean | readonly Value[] | { [key: string]: Value };
type Scope = Map<string, Value>;

/** What `raise_exception` of the template says: the conversation does not fit it. */
export class RefusedByTemplate extends Error {
  override readonly name = "RefusedByTemplate";
}

/** @throws RefusedByTemplate as the template wants, TemplateError for what this engine doesn't know. */
export function render(nodes: readonly Node[], globals: Readonly<Record<string, Value>>): string {
  return run(nodes, [new Map(Object.entries(globals))]);
}

function run(nodes: readonly Node[], scopes: readonly Scope[]): string {
  let out = "";
  for (const node of nodes) {
    if (node.kind === "text") out += node.text;
    else if (node.kind === "print") out += print(evaluate(node.value, scopes));
    else if (node.kind === "set") assign(node.target, evaluate(node.value, scopes), scopes);
    else if (node.kind === "if") {
      const branch = node.branches.find(({ test }) => test === null || truth(evaluate(test, scopes)));
      if (branch !== undefined) out += run(branch.body, scopes);
    } else {
      const list = evaluate(node.list, scopes);
      if (!Array.isArray(list)) throw new TemplateError("the chat template loops over what is no list");
      list.forEach((item: Value, index0: number) => {
        const loop = {
          index0,
          index: index0 + 1,
          first: index0 === 0,
          last: index0 === list.length - 1,
          length: list.length,
        };
        out += run(node.body, [
          ...scopes,
          new Map<string, Value>([
            [node.name, item],
            ["loop", loop],
          ]),
        ]);
      });
    }
  }
  return out;
}

/** As in Jinja, a name that is set inside a loop is forgotten after its turn; a field of a namespace is not. */
function assign(target: readonly string[], value: Value, scopes: readonly Scope[]): void {
  const [name, field] = target;
  if (field === undefined) scopes.at(-1)!.set(name!, value);
  else (look(name!, scopes) as { [key: string]: Value })[field] = value;
}

function look(name: string, scopes: readonly Scope[]): Value {
  return scopes.findLast((scope) => scope.has(name))?.get(name);
}

function evaluate(expression: Expression, scopes: readonly Scope[]): Value {
  const get = (inner: Expression): Value => evaluate(inner, scopes);
  switch (expression.kind) {
    case "literal":
      return expression.value;
    case "name":
      return look(expression.name, scopes);
    case "member":
      return member(get(expression.of), get(expression.key));
    case "not":
      return !truth(get(expression.of));
    case "choose":
      return truth(get(expression.test))
        ? get(expression.yes)
        : expression.no === null
          ? undefined
          : get(expression.no);
    case "filter":
      return filter(expression.name, get(expression.of));
    case "is":
      return test(expression.test, get(expression.of)) !== expression.negated;
    case "call":
      return call(expression.callee, expression.args.map(get), scopes);
    case "binary":
      return binary(expression.operator, expression.left, expression.right, get);
    case "slice": {
      const of = get(expression.of);
      if (typeof of !== "string" && !Array.isArray(of))
        throw new TemplateError("the chat template slices what is neither text nor list");
      const [from, to] = [expression.from, expression.to].map((end) => (end === null ? undefined : Number(get(end))));
      return (of as string).slice(from, to);
    }
  }
}

function binary(operator: string, left: Expression, right: Expression, get: (inner: Expression) => Value): Value {
  const a = get(left);
  if (operator === "and") return truth(a) ? get(right) : a;
  if (operator === "or") return truth(a) ? a : get(right);
  const b = get(right);
  switch (operator) {
    case "==":
      return a === b;
    case "!=":
      return a !== b;
    case "~":
      return print(a) + print(b);
    case "+":
      return typeof a === "string" || typeof b === "string" ? print(a) + print(b) : Number(a) + Number(b);
    case "-":
      return Number(a) - Number(b);
    case "%":
      return Number(a) % Number(b);
    case "<":
      return Number(a) < Number(b);
    case ">":
      return Number(a) > Number(b);
    case "<=":
      return Number(a) <= Number(b);
    case ">=":
      return Number(a) >= Number(b);
    default:
      return typeof b === "string"
        ? b.includes(print(a))
        : Array.isArray(b)
          ? b.includes(a)
          : isObject(b) && Object.hasOwn(b, print(a));
  }
}

function member(of: Value, key: Value): Value {
  if (Array.isArray(of) && typeof key === "number") return of.at(key) as Value;
  return isObject(of) && Object.hasOwn(of, print(key)) ? of[print(key)] : undefined;
}

const FILTERS: Readonly<Record<string, (value: Value) => Value>> = {
  trim: (value) => print(value).trim(),
  upper: (value) => print(value).toUpperCase(),
  lower: (value) => print(value).toLowerCase(),
  length: (value) => (typeof value === "string" || Array.isArray(value) ? value.length : 0),
  string: print,
  safe: (value) => value,
  tojson: (value) => JSON.stringify(value),
};
const METHODS: Readonly<Record<string, (text: string, args: readonly Value[]) => Value>> = {
  strip: (text) => text.trim(),
  upper: (text) => text.toUpperCase(),
  lower: (text) => text.toLowerCase(),
  title: (text) => text.replace(/\b\w/g, (letter) => letter.toUpperCase()),
  startswith: (text, [start]) => text.startsWith(print(start)),
  endswith: (text, [end]) => text.endsWith(print(end)),
  split: (text, [by]) => text.split(print(by)),
};

function filter(name: string, value: Value): Value {
  const known = FILTERS[name];
  if (known === undefined)
    throw new TemplateError(`the chat template uses the filter ${name}, which this engine doesn't know`);
  return known(value);
}

function test(name: string, value: Value): boolean {
  switch (name) {
    case "defined":
      return value !== undefined;
    case "none":
      return value === null;
    case "string":
      return typeof value === "string";
    case "mapping":
      return isObject(value);
    case "iterable":
      return typeof value === "string" || Array.isArray(value) || isObject(value);
    default:
      throw new TemplateError(`the chat template uses the test "is ${name}", which this engine doesn't know`);
  }
}

function call(callee: Expression, args: readonly Value[], scopes: readonly Scope[]): Value {
  if (callee.kind === "name" && callee.name === "raise_exception") throw new RefusedByTemplate(print(args[0]));
  if (callee.kind === "member" && callee.key.kind === "literal") {
    const of = evaluate(callee.of, scopes);
    const method = METHODS[String(callee.key.value)];
    if (typeof of === "string" && method !== undefined) return method(of, args);
  }
  throw new TemplateError("the chat template calls a function that this engine doesn't know");
}

function isObject(value: Value): value is { [key: string]: Value } {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function truth(value: Value): boolean {
  return Array.isArray(value) ? value.length > 0 : isObject(value) ? Object.keys(value).length > 0 : Boolean(value);
}

function print(value: Value): string {
  if (value === undefined || value === null) return value === null ? "None" : "";
  if (typeof value === "boolean") return value ? "True" : "False";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
