// POST /tokenize and /detokenize.
import type { EngineCore } from "../engine-core.ts";
import { missingFields, readFields, type JsonObject } from "./body.ts";
import { CHAT_FIELDS, readChatTokens } from "./chat.ts";
import { badRequest } from "./exchange.ts";
import { checkModel } from "./sampling.ts";

/** @returns The answer's JSON. @throws HttpError as vLLM does. */
export function tokenize(engine: EngineCore, body: JsonObject): string {
  if (body["prompt"] === undefined && body["messages"] === undefined) throw missingFields(body, ["prompt", "messages"]);
  const fields = readFields(body, {
    model: "string",
    prompt: "string",
    add_special_tokens: "boolean",
    return_token_strs: "boolean",
    ...CHAT_FIELDS,
  });
  checkModel(fields.model, engine.model.name);
  const { tokenizer, model } = engine;
  const tokens =
    fields.prompt !== null
      ? tokenizer.encodePrompt(fields.prompt, fields.add_special_tokens !== false)
      : readChatTokens(engine, fields);
  const texts = fields.return_token_strs === true ? tokens.map((token) => pieceOf(engine, token)) : null;
  return JSON.stringify({ count: tokens.length, max_model_len: model.maxLength, tokens, token_strs: texts });
}

/** @returns The answer's JSON. @throws HttpError for invalid ids. */
export function detokenize(engine: EngineCore, body: JsonObject): string {
  const fields = readFields(body, { model: "string", tokens: "any" });
  if (fields.tokens === null) throw missingFields(body, ["tokens"]);
  checkModel(fields.model, engine.model.name);
  const tokens = Array.isArray(fields.tokens) ? (fields.tokens as unknown[]) : [];
  const bad = tokens.find(
    (token) => !Number.isInteger(token) || Number(token) < 0 || Number(token) >= engine.tokenizer.vocabularySize,
  );
  if (bad !== undefined) throw badRequest(`Token id ${String(bad)} is out of vocabulary`);
  return JSON.stringify({ prompt: engine.tokenizer.decode(tokens as number[]) });
}

/** A token as byte-level BPE vocabularies spell it: a leading space is a letter of its own. */
function pieceOf({ tokenizer }: EngineCore, token: number): string {
  return (tokenizer.text(token) ?? "\ufffd").replaceAll(" ", "\u0120").replaceAll("\n", "\u010a");
}
