// `tandem chat`: a conversation in the terminal, or through a pipe.
import { createInterface, type Interface } from "node:readline";
import { loadConfig, StartError } from "../../../services/common/config.ts";
import { TandemError } from "../../client/errors.ts";
import { openAiClient, type Message, type OpenAiClient } from "../../client/openai.ts";
import { explained, findRouter, type RouterTarget } from "../router-target.ts";
import { chatConfig } from "./config.ts";
import { ask, figures, kvBytesOf } from "./turn.ts";

export async function runChat(argv: readonly string[]): Promise<void> {
  const config = loadConfig(chatConfig, { argv, env: process.env });
  const target = findRouter(config);
  const client = openAiClient(target.url, config.apiKey);
  const model = config.model ?? (await firstModel(client, target, config.apiKey));
  // Without a terminal, standard output carries only the answers, so that another program can read them.
  const onTerminal = process.stdin.isTTY === true && process.stdout.isTTY === true;
  const dim = (text: string): string =>
    onTerminal && (process.env["NO_COLOR"] ?? "") === "" ? `\x1b[2m${text}\x1b[0m` : text;
  const note = (text: string): unknown => (onTerminal ? process.stdout : process.stderr).write(`${dim(text)}\n`);
  note(
    `${introduction(model)} at ${target.url}. /new starts a new conversation. Ctrl-C stops an answer, or quits between answers.`,
  );

  const lines = createInterface({
    input: process.stdin,
    ...(onTerminal ? { output: process.stdout, prompt: "> " } : {}),
    terminal: onTerminal,
  });
  const beginning: Message[] = config.system === undefined ? [] : [{ role: "system", content: config.system }];
  let history = beginning;
  let answering: AbortController | null = null;
  let leaving = false;
  const interrupt = (): void => {
    // With piped input no user can ask again after a stopped answer, so the chat ends.
    if (answering === null || !onTerminal) {
      leaving = true;
      lines.close();
    }
    answering?.abort();
  };
  lines.on("SIGINT", interrupt);
  process.on("SIGINT", interrupt);
  process.on("SIGTERM", interrupt);

  for await (const line of questions(lines, onTerminal)) {
    if (line === "/quit" || line === "/exit") break;
    if (line === "/new") {
      history = beginning;
      note("New conversation.");
      continue;
    }
    answering = new AbortController();
    try {
      const messages: Message[] = [...history, { role: "user", content: line }];
      const { temperature, seed, maxTokens } = config;
      const request = { model, messages, temperature, seed, max_tokens: maxTokens };
      const turn = await ask(client, request, answering.signal, (text) => void process.stdout.write(text));
      if (turn.text !== "") process.stdout.write("\n");
      note(figures(turn, await kvBytesOf(target, turn.requestId)));
      if (turn.text !== "") history = [...messages, { role: "assistant", content: turn.text }];
    } catch (error) {
      if (!(error instanceof TandemError)) throw error;
      process.stderr.write(`${(explained(error, target, config.apiKey) as Error).message}\n`);
      if (!onTerminal) process.exitCode = 1;
    }
    answering = null;
    if (leaving) break;
  }
  // Standard input may still be open.
  process.stdin.destroy();
  if (onTerminal) process.stdout.write("\n");
}

/** Yields the lines that are not empty, until the input ends. */
async function* questions(lines: Interface, prompting: boolean): AsyncGenerator<string> {
  let closed = false;
  lines.once("close", () => (closed = true));
  const prompt = (): void => {
    if (prompting && !closed) lines.prompt();
  };
  prompt();
  for await (const line of lines) {
    if (line.trim() !== "") yield line.trim();
    prompt();
  }
}

async function firstModel(client: OpenAiClient, target: RouterTarget, apiKey: string): Promise<string> {
  const [first] = await client.models().catch((error: unknown) => {
    throw explained(error, target, apiKey);
  });
  if (first === undefined)
    throw new StartError(
      `The router at ${target.url} serves no model at the moment. \`tandem status\` shows its instances.`,
    );
  return first.id;
}

/** The name of the model; the shipped one is introduced as the small model that it is. */
function introduction(model: string): string {
  return model === "tandem-tiny"
    ? "tandem-tiny, a very small model that knows Tandem's documentation and little else,"
    : model;
}
