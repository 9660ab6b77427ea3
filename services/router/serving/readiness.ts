// Whether this router can serve, as a whole and by model. Names no instance and no address.
import type { FleetView } from "../pool/pool.ts";

export interface RouterReadiness {
  /** Why no model can be served; undefined where one can. */
  readonly lack: string | undefined;
  /** By model: what it lacks. Empty for one that can be served. */
  readonly models: ReadonlyMap<string, string>;
}

/** @param strict Requests are served by pairs alone. */
export function readinessOf(view: FleetView, strict: boolean): RouterReadiness {
  const models = new Map([...view.models].map(([name, model]) => [name, model.lack(strict) ?? ""] as const));
  if (models.size === 0) {
    return { lack: "No instance has registered: start a prefill and a decode instance.", models };
  }
  const lacks = [...models.values()];
  return { lack: lacks.includes("") ? undefined : lacks.join(" "), models };
}
