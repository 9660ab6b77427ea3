// @connectrpc/connect uses this DOM type in its declarations, and Node's types don't have it as a global.
type HeadersInit = import("undici-types").HeadersInit;
