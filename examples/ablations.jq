# Records of clip-ablate, all at once (jq -s), as lines of a table; `pool` and `explained` are added by the file of make that has them.
def change: if (.layers | length) == 0 then "untouched" else .ablate // .reconstruct // "keep" end;
["effect", "units", "layers", "change", "components", "m", "keep", "pool", "explained", "n",
 "top1", "low", "high", "top5", "agreement", "cosine"],
(.[] | [.effect, .units, (.layers // [] | map(tostring) | join(" ")), change, .components, .m, .keep, .pool, .explained, .n,
 .top1.value, .top1.low, .top1.high, .top5.value, .agreement, .cosine]) | @csv
