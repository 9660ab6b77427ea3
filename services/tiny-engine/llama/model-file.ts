// A model's file, read and checked before anything is computed with it: tokenizer, chat template, size, and the
// hash by which two engines know that they run the same weights.
import { createHash } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import { totalmem } from "node:os";
import { createBpe } from "./bpe.ts";
import { createChatTemplate } from "./chat/chat-template.ts";
import { GgufError, readGguf, type Gguf } from "./gguf.ts";
import { readShape } from "./shape.ts";

/** WebAssembly addresses 4 GiB; some of it is for rows and angles. */
const ADDRESSABLE_BYTES = 4 * 1024 ** 3 - 256 * 1024 ** 2;

export type ModelFile = ReturnType<typeof openModelFile>;

/** @param source A path, or the file's bytes. @throws GgufError that says why the model can't be run here. */
export function openModelFile(source: string | Uint8Array) {
  const file = typeof source === "string" ? readChecked(source) : source;
  const gguf = readGguf(file);
  const shape = readShape(gguf);
  checkSize(weightBytes(gguf));
  const tokenizer = createBpe(gguf);
  if (tokenizer.vocabularySize !== shape.vocab) {
    throw new GgufError(`the tokenizer has ${tokenizer.vocabularySize} tokens and the embeddings ${shape.vocab}`);
  }
  const name = gguf.metadata.get("general.name");
  // A copy if the bytes share their buffer with others, such as a small file from Node's pool.
  const alone = file.byteOffset === 0 && file.byteLength === file.buffer.byteLength && typeof source === "string";
  return {
    /** The whole file, alone in its buffer so that it can be transferred to the worker. */
    bytes: (alone ? file.buffer : new Uint8Array(file).buffer) as ArrayBuffer,
    /** SHA-256 of the file: weights, tokenizer and template. */
    hash: createHash("sha256").update(file).digest("hex"),
    /** The model's name in its file. */
    name: typeof name === "string" && name !== "" ? name : "llama",
    shape,
    tokenizer,
    chatTokens: createChatTemplate(gguf, tokenizer),
    /** Tokens that end an answer. */
    eos: tokenizer.eos,
  };
}

function readChecked(path: string): Uint8Array {
  try {
    checkSize(statSync(path).size);
    return readFileSync(path);
  } catch (error) {
    if (error instanceof GgufError) throw error;
    throw new GgufError(`the file can't be read (${(error as NodeJS.ErrnoException).code ?? String(error)})`);
  }
}

/** Size of the weights in the kernel, where F16 is widened, and so are the scales of Q8_0. */
function weightBytes({ tensors }: Gguf): number {
  const growth = { F32: 1, F16: 2, Q8_0: 36 / 34 };
  return [...tensors.values()].reduce((sum, { type, bytes }) => sum + bytes.byteLength * growth[type], 0);
}

function checkSize(bytes: number): void {
  const memory = Math.min(totalmem(), process.constrainedMemory?.() || Infinity);
  const mib = (count: number): string => `${Math.ceil(count / 1024 ** 2)} MiB`;
  if (bytes > ADDRESSABLE_BYTES)
    throw new GgufError(`the weights take ${mib(bytes)}; this engine can hold ${mib(ADDRESSABLE_BYTES)}`);
  if (bytes * 1.5 > memory)
    throw new GgufError(
      `the weights take ${mib(bytes)}, which is too much for this machine's ${mib(memory)} of memory`,
    );
}
