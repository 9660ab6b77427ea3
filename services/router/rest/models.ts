// OpenAI's list of models, with vLLM's max_model_len.
import { ServiceError } from "../../common/errors.ts";
import type { FleetView, ModelView } from "../pool/pool.ts";

export interface ModelCard {
  readonly id: string;
  readonly object: "model";
  readonly created: number;
  readonly owned_by: "tandem";
  readonly root: string;
  readonly parent: null;
  /** Longest prompt plus answer, in tokens. */
  readonly max_model_len?: number;
  /** Only where it can't be served now. */
  readonly ready?: false;
}

/** @param createdS Unix time in seconds. */
export function modelList(view: FleetView, createdS: number): { object: "list"; data: ModelCard[] } {
  return { object: "list", data: [...view.models.values()].map((model) => card(model, createdS)) };
}

/** @throws ServiceError `model_not_found` */
export function modelOf(view: FleetView, id: string, createdS: number): ModelCard {
  const model = view.models.get(id);
  if (model !== undefined) return card(model, createdS);
  throw new ServiceError(
    "model_not_found",
    `The model \`${id}\` does not exist. Valid aliases: ${[...view.models.keys()].join(", ")}.`,
    {
      param: "model",
    },
  );
}

function card(model: ModelView, created: number): ModelCard {
  const { name: id, maxModelLen } = model;
  return {
    id,
    object: "model",
    created,
    owned_by: "tandem",
    root: id,
    parent: null,
    ...(maxModelLen > 0 ? { max_model_len: maxModelLen } : {}),
    ...(model.lack(false) === undefined ? {} : { ready: false }),
  };
}
