// The output of `tandem up`: plain lines, so that they read the same on a terminal, in a file and in a CI log. Its own
// messages go to standard output, warnings and the children's lines to standard error.

const NAME_COLOURS = ["\x1b[36m", "\x1b[35m", "\x1b[34m", "\x1b[32m"];
const YELLOW = "\x1b[33m";

export function createTerminal() {
  const colour = process.stderr.isTTY === true && (process.env["NO_COLOR"] ?? "") === "";
  const painted = (text: string, code: string): string => (colour ? `${code}${text}\x1b[0m` : text);
  const names: string[] = [];
  return {
    colour,
    say: (text: string) => process.stdout.write(`${text}\n`),
    warn: (text: string) => process.stderr.write(`${painted(text, YELLOW)}\n`),
    /** Prints one line of a child, after the child's name. */
    relay(name: string, line: string): void {
      if (!names.includes(name)) names.push(name);
      const code = NAME_COLOURS[names.indexOf(name) % NAME_COLOURS.length]!;
      process.stderr.write(`${painted(name, code)} | ${line}\n`);
    },
  };
}
