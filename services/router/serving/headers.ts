// The headers that clients and the router exchange. No other file of the router spells their
// names, and docs/headers.md is made from this list. Not here: what HTTP itself needs, such as the length of an answer.

export interface Header {
  /** In lower case, as node:http has it. */
  readonly name: string;
  /** The values it may have, for people. */
  readonly value: string;
  readonly help: string;
}

/** What the router reads. Over gRPC `Generate` reads those under x-tandem- and authorization as metadata. */
export const REQUEST_HEADERS = {
  authorization: {
    name: "authorization",
    value: "`Bearer KEY`",
    help: "The API key, where the router has one (`api_key`). Without it, or with another: 401.",
  },
  contentType: {
    name: "content-type",
    value: "`application/json`",
    help: "Required where a body is sent. Anything else: 400.",
  },
  contentEncoding: {
    name: "content-encoding",
    value: "`identity`, or left out",
    help: "Bodies are taken uncompressed. Anything else: 400.",
  },
  contentLength: {
    name: "content-length",
    value: "bytes",
    help: "A body that is announced larger than `body.limit_bytes` is refused with 413 before it is read.",
  },
  host: {
    name: "host",
    value: "name or address",
    help: "On loopback without a key: `localhost`, an address, or a name of `rest.hosts`. Anything else: 403.",
  },
  requestId: {
    name: "x-request-id",
    value: "1 to 128 of `A-Z a-z 0-9 . _ -`, without `___`",
    help: "The client's own id: comes back with the answer and finds the receipt. It never reaches an engine. Other ids are ignored.",
  },
  priority: {
    name: "x-tandem-priority",
    value: "-100 to 100",
    help: "Place in the queue: lower goes first. Left out: `priority` of the body, else 0.",
  },
  tenant: {
    name: "x-tandem-tenant",
    value: "text; 128 characters count",
    help: "Tenants take turns in the queue. Left out: `user` of the body. Believed as it is.",
  },
  timeout: {
    name: "x-tandem-timeout-ms",
    value: "1 to 86400000",
    help: "How long the caller waits for the whole answer, `request.deadline_ms` at most. Then: 504 or an error event.",
  },
  strict: {
    name: "x-tandem-strict",
    value: "`true` or `false`",
    help: "Returns an error instead of using a fallback. Left out: the setting `strict`.",
  },
} as const satisfies Record<string, Header>;

/** What the router sets. */
export const ANSWER_HEADERS = {
  requestId: {
    name: "x-request-id",
    value: "the client's id, else the id in the answer",
    help: "For `tandem explain ID`. On answers of the generating paths; of one refused unread, the client's own.",
  },
  timing: {
    name: "server-timing",
    value: "`queue;dur=0.1, reserve;dur=1.4, ...` (ms)",
    help: "Where the time went until the headers were sent. For a non-streaming response, that includes decode.",
  },
  degraded: {
    name: "x-tandem-degraded",
    value: "kinds of fallbacks, with commas between",
    help: "Where the plan was not followed. [The kinds](reliability.md#fallbacks). Eight at most; the receipt has all.",
  },
  retryAfter: {
    name: "retry-after",
    value: "seconds",
    help: "With 429 and 503: when to try again. OpenAI's SDKs obey it.",
  },
  authenticate: { name: "www-authenticate", value: "`Bearer`", help: "With 401." },
  allow: { name: "allow", value: "methods", help: "With 405: the methods of this path." },
  caching: { name: "cache-control", value: "`no-cache`, `no-store`", help: "On streams and on the page." },
  buffering: { name: "x-accel-buffering", value: "`no`", help: "On streams: nginx passes each event on at once." },
} as const satisfies Record<string, Header>;
