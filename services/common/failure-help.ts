// When each failure happens, and what the caller or the operator can do about it: docs/errors.md is generated from
// this table and the table of failures.
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
    "A pair of engines can't serve one field of the request: see [refused fields](api.md#refused-fields).",
    "Leave the field out.",
  ],
  body_too_large: ["The body is larger than `body.limit_bytes`.", "Send less, or raise the setting."],
  unauthenticated: [
    "The API key or the join token is missing or wrong.",
    "Send `Authorization: Bearer ...` with the API key for `/v1` and `Generate`, else with the join token.",
  ],
  permission_denied: [
    "A router on loopback without an API key was called by a host name that a web page may have pointed at it.",
    "Use `localhost` or the address, allow the host name with `rest.hosts`, or set an API key.",
  ],
  model_not_found: [
    "No registered instance serves the model. The message names the served models.",
    "Ask for one of them (`GET /v1/models`).",
  ],
  not_found: [
    "The path, instance, gRPC service or receipt does not exist. The last 1000 receipts are kept.",
    "Check the name. Ask the router that served the request for its receipt.",
  ],
  method_not_allowed: [
    "The path exists and takes another method, or the gRPC method is not served here.",
    "Use a method named in the `allow` header. Over gRPC: check the address, and the versions of both sides.",
  ],
  failed_precondition: [
    "The call doesn't fit the state of its receiver, such as `Undrain` on an instance that is stopping.",
    "Check the state (`tandem status`). Restart the instance.",
  ],
  queue_full: [
    "`queue.limit` requests wait, the wait would outlast the deadline, or bodies fill `body.total_bytes`.",
    "Wait as long as `retry-after` says. If the error persists, add decode instances or slots.",
  ],
  instance_busy: [
    "No KV slot is free on one instance (the router tries another), or on any instance for `queue.timeout_ms`.",
    "Try again after `retry-after`. If the error persists, add decode instances or slots.",
  ],
  no_instance: [
    "No instance or pair can serve the model now. The message says which role is missing, and why its instances are out.",
    "[operations.md](operations.md#why-an-instance-is-out) says what to do for each reason.",
  ],
  instance_unavailable: [
    "An instance is starting, is draining, has stopped or can't be reached; or the router is stopping.",
    "Try again, through another router if this one is stopping. If the error persists, see `tandem status`.",
  ],
  instance_lost: [
    "The connection to an instance broke, or the instance fell silent, while it worked on the request.",
    "Try again. `tandem explain ID` names the instance; its log and its supervisor's log say why it was lost.",
  ],
  leg_id_reused: [
    "An instance received a leg under an id that was used before. Routers make a new id for each attempt.",
    "If you call the gRPC services of the legs yourself, use a fresh id. Otherwise report a bug.",
  ],
  kv_transfer_failed: [
    "The KV cache did not reach the decode engine, or the prefill engine kept none.",
    "`tandem doctor` probes each pair. Check the network between the engines, and the logs of both instances.",
  ],
  engine_failed: [
    "An engine answered 5xx, reported an error inside its stream, broke the stream off, or stopped.",
    "See the instance's log; at `log.level` debug it has the engine's lines. A dead engine is restarted automatically.",
  ],
  reservation_expired: [
    "A decode instance held a KV slot, and the router did not start the leg in time.",
    "If the error repeats, the router gets too little processor time: see `tandem_event_loop_delay_seconds`.",
  ],
  leg_stalled: [
    "Prefill, transfer or decode made no progress within its bound. The message says where the time went.",
    "A wedged engine is restarted automatically. See [the bounds](reliability.md#how-long-each-part-may-take).",
  ],
  deadline_exceeded: [
    "The time of `x-tandem-timeout-ms`, a gRPC deadline, `request.deadline_ms` or `first_token.timeout_ms` ran out.",
    "Allow more time, or ask for less. The end of the message says where the time went.",
  ],
  cancelled: [
    "The client disconnected, or read nothing for `client.stall_ms`. 499 is nginx's code and appears only in the log.",
    "Nothing to do on the server. If the client is slow, read faster or raise `client.stall_ms`.",
  ],
  internal: [
    "A bug in Tandem. The message gives no details; the log has the stack.",
    "Report the bug, with the log line.",
  ],
};
