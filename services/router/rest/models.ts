// OpenAI's list of models, with vLLM's max_model_len.
import type { FleetView, ModelView } from "../pool/pool.ts";
import { modelNotFound } from "../serving/validation.ts";

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
  if (model === undefined) throw modelNotFound(id, view.models.keys());
  return card(model, createdS);
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
