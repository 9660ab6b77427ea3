// What one attempt is to do: for which choice of which request, on which instances, under which id.
import type { Instance } from "../pool/pool.ts";
import type { LegTraits } from "./protocol.ts";
import type { LegDraft } from "../request/receipt.ts";
import type { RelayRequest } from "../request/request.ts";

export interface LegTask {
  readonly request: RelayRequest;
  readonly draft: LegDraft;
  readonly promptIndex: number | undefined;
  readonly sampleIndex: number;
  readonly traits: LegTraits;
  /** Undefined where the leg is unpaired. */
  readonly prefill: Instance | undefined;
  /** Undefined where it is picked after prefill. */
  readonly decode: Instance | undefined;
}
