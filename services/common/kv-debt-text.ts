/** KV that only a restart of its engine frees, for people: `3.2 MiB (0.4 %)`. Empty if there is none. */
export function kvDebtText(load: { readonly kvDebtBytes: bigint; readonly kvDebtRatio: number } | undefined): string {
  if (load === undefined || load.kvDebtBytes === 0n) return "";
  return `${(Number(load.kvDebtBytes) / 2 ** 20).toFixed(1)} MiB (${(load.kvDebtRatio * 100).toFixed(1)} %)`;
}
