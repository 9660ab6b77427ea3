// @connectrpc/connect names this DOM type in its declarations, and Node's own types don't have it as a global.
type HeadersInit = import("undici-types").HeadersInit;
