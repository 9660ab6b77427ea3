// Skips a test with a reason that the report names.

/** Called as `skip(this, "grpcurl is not installed")` in a test, or in a `before` hook for its whole suite. */
export function skip(context: Mocha.Context, reason: string): never {
  const runnable = context.runnable();
  // Mocha's types don't know `type`; a hook stands for all tests of its suite.
  const isHook = (runnable as { type?: string }).type === "hook";
  const marked = ((isHook ? runnable.parent : undefined) ?? runnable) as { skipReason?: string };
  marked.skipReason = reason;
  return context.skip();
}
