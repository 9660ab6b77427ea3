// What clients may learn of the models: OpenAI's list with vLLM's max_model_len, and whether each can be served. Names no
// instance and no address.
import type { FleetView, ModelView } from "../pool/pool.ts";
import { modelNotFound } from "../serving/validation.ts";

export interface RouterReadiness {
  /** Why no model can be served; undefined where one can. */
  readonly lack: string | undefined;
  /** By model that can't be served: what it lacks. */
  readonly lacking: Readonly<Record<string, string>>;
}

/** @param createdS Unix time in seconds. */
export function modelList(view: FleetView, createdS: number): { object: "list"; data: object[] } {
  return { object: "list", data: [...view.models.values()].map((model) => card(model, createdS)) };
}

/** @throws ServiceError `model_not_found` */
export function modelOf({ models }: FleetView, id: string, createdS: number): object {
  const model = models.get(id);
  if (model === undefined) throw modelNotFound(id, models.keys());
  return card(model, createdS);
}

function card(model: ModelView, created: number): object {
  const { name: id, maxModelLen } = model;
  return {
    id,
    object: "model",
    created,
    owned_by: "tandem",
    root: id,
    parent: null,
    // Longest prompt plus answer, in tokens.
    ...(maxModelLen > 0 ? { max_model_len: maxModelLen } : {}),
    // Only where it can't be served now.
    ...(model.lack(false) === undefined ? {} : { ready: false }),
  };
}

/** @param strict Requests are served by pairs alone. */
export function readinessOf({ models }: FleetView, strict: boolean): RouterReadiness {
  const lacks = [...models.values()].flatMap((model) => {
    const lack = model.lack(strict);
    return lack === undefined ? [] : [[model.name, lack] as const];
  });
  const lacking = Object.fromEntries(lacks);
  if (models.size === 0) return { lack: "No instance has registered: start a prefill and a decode instance.", lacking };
  return { lack: lacks.length < models.size ? undefined : lacks.map(([, lack]) => lack).join(" "), lacking };
}
