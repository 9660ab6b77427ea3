// POST /tokenize and /detokenize.
import type { EngineCore } from "../engine-core.ts";
import { readFields, validationError, type JsonObject } from "./body.ts";
import { readMessages } from "./chat.ts";
import { badRequest } from "./exchange.ts";
import { checkModel } from "./sampling.ts";

/** @returns The answer's JSON. @throws HttpError as vLLM does. */
export function tokenize(engine: EngineCore, body: JsonObject): string {
  const input = `'<dict of ${Object.keys(body).length} items>'`;
  if (body["prompt"] === undefined && body["messages"] === undefined) {
    throw validationError(
      ["prompt", "messages"].map((field) => ({ type: "missing", loc: `body.${field}`, msg: "Field required", input })),
    );
  }
  const fields = readFields(body, {
    model: "string",
    prompt: "string",
    messages: "any",
    add_special_tokens: "boolean",
    return_token_strs: "boolean",
    add_generation_prompt: "boolean",
    continue_final_message: "boolean",
  });
  checkModel(fields.model, engine.model.name);
  const { tokenizer, model } = engine;
  const tokens =
    fields.prompt !== null
      ? tokenizer.encodePrompt(fields.prompt, fields.add_special_tokens !== false)
      : engine.chatTokens(
          readMessages(fields.messages),
          fields.add_generation_prompt ?? true,
          fields.continue_final_message ?? false,
        );
  const texts = fields.return_token_strs === true ? tokens.map((token) => pieceOf(engine, token)) : null;
  return JSON.stringify({ count: tokens.length, max_model_len: model.maxLength, tokens, token_strs: texts });
}

/** @returns The answer's JSON. @throws HttpError for invalid ids. */
export function detokenize(engine: EngineCore, body: JsonObject): string {
  const fields = readFields(body, { model: "string", tokens: "any" });
  if (fields.tokens === null) {
    throw validationError([
      {
        type: "missing",
        loc: "body.tokens",
        msg: "Field required",
        input: `'<dict of ${Object.keys(body).length} items>'`,
      },
    ]);
  }
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
