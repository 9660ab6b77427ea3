// OpenAI's list of models, with vLLM's max_model_len.
import { ServiceError } from "../../common/errors.ts";
import type { PoolSnapshot } from "../pool/pool.ts";

export interface ModelCard {
  readonly id: string;
  readonly object: "model";
  readonly created: number;
  readonly owned_by: "tandem";
  readonly root: string;
  readonly parent: null;
  /** Longest prompt plus answer, in tokens. */
  readonly max_model_len?: number;
}

/** @param createdS Unix time in seconds. */
export function modelList(snapshot: PoolSnapshot, createdS: number): { object: "list"; data: ModelCard[] } {
  return { object: "list", data: [...snapshot.models].map(([id, { maxModelLen }]) => card(id, maxModelLen, createdS)) };
}

/** @throws ServiceError `model_not_found` */
export function modelOf(snapshot: PoolSnapshot, id: string, createdS: number): ModelCard {
  const model = snapshot.models.get(id);
  if (model !== undefined) return card(id, model.maxModelLen, createdS);
  throw new ServiceError(
    "model_not_found",
    `The model \`${id}\` does not exist. Valid aliases: ${[...snapshot.models.keys()].join(", ")}.`,
    {
      param: "model",
    },
  );
}

function card(id: string, maxModelLen: number, created: number): ModelCard {
  return {
    id,
    object: "model",
    created,
    owned_by: "tandem",
    root: id,
    parent: null,
    ...(maxModelLen > 0 ? { max_model_len: maxModelLen } : {}),
  };
}
