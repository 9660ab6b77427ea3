// When each failure happens, and what the caller or the operator can do about it: docs/errors.md is made from this and
// from the table of failures.
import type { FailureCode } from "./errors.ts";

export const FAILURE_HELP: Readonly<Record<FailureCode, readonly [when: string, cure: string]>> = {
  invalid_request: [
    "The request is malformed, or sets a field that only Tandem may set. The message says which.",
    "Change the request as the message says.",
  ],
  engine_refused: [
    "The engine refused the body. Status and error body are the engine's own if it answered 4xx.",
    "Change the request as the engine says, such as fewer tokens or another `tool_choice`.",
  ],
  not_supported: [
    "A pair of engines can't serve a field of the request: see [refused fields](api.md#refused-fields).",
    "Leave the field out.",
  ],
  body_too_large: ["The body is larger than `body.limit_bytes`.", "Send less, or raise the setting."],
  unauthenticated: [
    "The API key or the join token is missing or wrong.",
    "Send `Authorization: Bearer ...` with the API key for `/v1` and `Generate`, else with the join token.",
  ],
  permission_denied: [
    "A router on loopback without a key was asked under a name that a web page may have pointed at it.",
    "Call it `localhost` or by its address, allow the name with `rest.hosts`, or set an API key.",
  ],
  model_not_found: [
    "No registered instance serves the model. The message names those that are served.",
    "Ask for one of them (`GET /v1/models`).",
  ],
  not_found: [
    "There is no such path, instance, gRPC service or receipt. The last 1000 receipts are kept.",
    "Check the name. Ask the router that served the request for its receipt.",
  ],
  method_not_allowed: [
    "The path exists and takes another method, or the gRPC method is not served here.",
    "Use the method of the header `allow`. Over gRPC: check the address, and the versions of both sides.",
  ],
  failed_precondition: [
    "The call doesn't fit the state of its receiver, such as `Undrain` on an instance that is stopping.",
    "Look at the state (`tandem status`). Start the instance again.",
  ],
  queue_full: [
    "`queue.limit` requests wait, the wait would outlast the deadline, or bodies fill `body.total_bytes`.",
    "Wait as long as `retry-after` says. If it lasts: more decode instances, or more slots.",
  ],
  instance_busy: [
    "No KV slot is free on one instance (the router asks another), or on any for `queue.timeout_ms`.",
    "Try again after `retry-after`. If it lasts: more decode instances, or more slots.",
  ],
  no_instance: [
    "Nothing can serve the model now. The message says which side is missing, and why its instances are out.",
    "[operations.md](operations.md#why-an-instance-is-out) has what to do for each reason.",
  ],
  instance_unavailable: [
    "An instance starts, drains, has stopped or can't be reached; or the router is stopping.",
    "Try again: after a restart of the router through another one. If it lasts: `tandem status`.",
  ],
  instance_lost: [
    "The connection to an instance broke, or the instance fell silent, while it worked on the request.",
    "Try again. `tandem explain ID` names the instance; its log, and that of its supervisor, say why it went.",
  ],
  leg_id_reused: [
    "An instance was sent a leg under an id that it knows. Routers make a new id for each attempt.",
    "A caller of the legs' own gRPC calls: use a fresh id. Else report it.",
  ],
  kv_transfer_failed: [
    "The KV cache did not reach the decode engine, or the prefill engine kept none.",
    "`tandem doctor` probes each pair. Look at the network between the engines, and at both instances' logs.",
  ],
  engine_failed: [
    "An engine answered 5xx, reported an error inside its stream, broke it off, or stopped.",
    "See the instance's log; at `log.level` debug it has the engine's lines. A dead engine starts again by itself.",
  ],
  reservation_expired: [
    "A decode instance held a KV slot and was not told to start in time.",
    "If it repeats, the router gets too little processor time: see `tandem_event_loop_delay_seconds`.",
  ],
  leg_stalled: [
    "Prefill, transfer or decode made no progress within its bound. The message says where the time went.",
    "An engine that hangs is restarted by itself. [The bounds](reliability.md#how-long-each-part-may-take).",
  ],
  deadline_exceeded: [
    "`x-tandem-timeout-ms`, a gRPC deadline, `request.deadline_ms` or `first_token.timeout_ms` was over.",
    "Give it more time, or ask for less. The message ends with where the time went.",
  ],
  cancelled: [
    "The client left, or took nothing for `client.stall_ms`. 499 is nginx's code, for the log alone.",
    "Nothing on the server. A slow client: read faster, or raise `client.stall_ms`.",
  ],
  internal: ["A bug of Tandem. The message says nothing; the log has the stack.", "Report it, with the log line."],
};
