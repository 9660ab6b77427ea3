// A conversation as tokens, by the template in the model's file. The names of special tokens mean those tokens if
// the template wrote them, and are ordinary letters if a client did: no client can end a turn from inside a message.
import { badRequest } from "../../http/exchange.ts";
import type { Message } from "../../engine.ts";
import type { Bpe } from "../bpe.ts";
import { GgufError, type Gguf } from "../gguf.ts";
import { compileTemplate, RefusedByTemplate, type RenderTemplate, type TemplateError } from "./compile-template.ts";

type ChatTemplate = (messages: readonly Message[], openTurn: boolean, continueFinal: boolean) => number[];

// Inserted after the first letter of special names in messages, and removed before the text is encoded. Noncharacters
// of Unicode: the code picks one that no message holds, or refuses the messages.
const MARKS = Array.from({ length: 32 }, (_, index) => String.fromCodePoint(0xfdd0 + index));
/** Marks the end of the last message, for an answer that continues it. */
const END_MARK = "\ufffe";

/** @throws GgufError if this engine can't render the file's template. */
export function createChatTemplate({ metadata }: Gguf, bpe: Bpe): ChatTemplate {
  const source = metadata.get("tokenizer.chat_template");
  if (typeof source !== "string") {
    return () => {
      throw badRequest("The model's file has no chat template. Use /v1/completions.");
    };
  }
  const nameOf = (key: string): string => {
    const token = metadata.get(`tokenizer.ggml.${key}_id`);
    return typeof token === "number" ? bpe.decode([token]) : "";
  };
  const globals = { bos_token: nameOf("bos_token"), eos_token: nameOf("eos_token") };
  const render = checked(source, globals);

  const write = (messages: readonly Message[], openTurn: boolean): string => {
    try {
      return render({ ...globals, messages, add_generation_prompt: openTurn });
    } catch (error) {
      const { message } = error as RefusedByTemplate | TemplateError;
      throw badRequest(
        error instanceof RefusedByTemplate ? message : `The chat template can't render these messages: ${message}`,
        "messages",
      );
    }
  };
  return (messages, openTurn, continueFinal) => {
    const mark = MARKS.find((candidate) =>
      messages.every(({ role, content }) => !`${role}${content}`.includes(candidate)),
    );
    if (mark === undefined) throw badRequest("The messages hold noncharacters of Unicode.", "messages");
    const tame = (text: string): string => bpe.hideSpecials(text, mark);
    const safe = messages.map(({ role, content }) => ({ role: tame(role), content: tame(content) }));
    if (!continueFinal) return bpe.encodeHidden(write(safe, openTurn), mark);
    const last = safe.at(-1)!;
    const text = write([...safe.slice(0, -1), { ...last, content: last.content.trimEnd() + END_MARK }], false);
    const end = text.lastIndexOf(END_MARK);
    if (end < 0)
      throw badRequest(
        "The chat template leaves out the final message, so that message can't be continued.",
        "messages",
      );
    return bpe.encodeHidden(text.slice(0, end), mark);
  };
}

/** A trial run finds errors that parsing doesn't: filters and functions that don't exist. */
function checked(source: string, globals: Readonly<Record<string, string>>): RenderTemplate {
  try {
    const render = compileTemplate(source);
    try {
      render({ ...globals, messages: [{ role: "user", content: "?" }], add_generation_prompt: true });
    } catch (error) {
      // Such a template needs another conversation, not another engine.
      if (!(error instanceof RefusedByTemplate)) throw error;
    }
    return render;
  } catch (error) {
    throw new GgufError(`the chat template can't be rendered: ${(error as TemplateError).message}`);
  }
}
