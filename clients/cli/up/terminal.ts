// The output of `tandem up`: plain lines, so that they read the same on a terminal, in a file and in a CI log. Its own
// messages go to standard output, warnings and the children's lines to standard error.

export interface Terminal {
  readonly colour: boolean;
  say(line: string): void;
  /** Prints text unchanged. */
  print(text: string): void;
  warn(text: string): void;
  /** Prints one line of a child, after the child's name. */
  relay(name: string, line: string): void;
}

const NAME_COLOURS = ["\x1b[36m", "\x1b[35m", "\x1b[34m", "\x1b[32m"];
const OFF = "\x1b[0m";

export function createTerminal(): Terminal {
  const colour = process.stderr.isTTY === true && (process.env["NO_COLOR"] ?? "") === "";
  const colours = new Map<string, string>();
  const prefix = (name: string): string => {
    if (!colour) return `${name} | `;
    let own = colours.get(name);
    if (own === undefined) {
      own = NAME_COLOURS[colours.size % NAME_COLOURS.length]!;
      colours.set(name, own);
    }
    return `${own}${name}${OFF} | `;
  };
  return {
    colour,
    say: (line) => process.stdout.write(`${line}\n`),
    print: (text) => process.stdout.write(text),
    warn: (text) => process.stderr.write(colour ? `\x1b[33m${text}${OFF}\n` : `${text}\n`),
    relay: (name, line) => process.stderr.write(`${prefix(name)}${line}\n`),
  };
}
