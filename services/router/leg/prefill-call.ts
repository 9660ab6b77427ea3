// The prefill leg on the wire: one unary call.
import { fromBinary } from "@bufbuild/protobuf";
import { PrefillResponseSchema, PrefillService } from "#gen/tandem/prefill/v1/prefill_pb.js";
import type { PrefillResponse } from "#gen/tandem/prefill/v1/prefill_pb.js";
import { asServiceError, type ServiceError } from "../../common/errors.ts";
import { methodPath } from "../../rpc/service.ts";
import type { Instance } from "../pool/pool.ts";
import { fromInstance } from "./blame.ts";
import type { LegTask } from "./task.ts";
import { prefillMessage } from "./wire.ts";

const PATH = methodPath(PrefillService, PrefillService.method.prefill);

export interface PrefillHandlers {
  onDone(answer: PrefillResponse): void;
  onFailed(error: ServiceError): void;
  /** A handler threw. */
  onBug(error: unknown): void;
}

/** Calls exactly one of the handlers, later. Returns what cancels the call, which then fails. */
export function callPrefill(
  { request, draft, promptIndex }: LegTask,
  prefill: Instance,
  { decodeKvAddress, timeoutMs }: { decodeKvAddress: string; timeoutMs: number },
  handlers: PrefillHandlers,
): () => void {
  const fields = {
    legId: draft.legId,
    path: request.path,
    decodeKvAddress,
    // What decode was told, too.
    prefillKvAddress: decodeKvAddress === "" ? "" : prefill.info.kvAddress,
    ...(promptIndex === undefined ? {} : { promptIndex }),
  };
  let cancel = (): void => {};
  prefill.channel
    .unary(PATH, prefillMessage(fields, request.body), {
      timeoutMs,
      onCancelable: (fn) => {
        cancel = fn;
      },
    })
    .then((bytes) => fromBinary(PrefillResponseSchema, bytes))
    .then(handlers.onDone, (thrown: unknown) => handlers.onFailed(fromInstance(asServiceError(thrown), "prefill")))
    .catch(handlers.onBug);
  return () => cancel();
}
