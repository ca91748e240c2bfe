# Makes the lines of a table from all records of clip-ablate at once (jq -s). The files of make add `pool` and `explained` to the records.
def change: if (.layers | length) == 0 then "untouched" else .ablate // .reconstruct // "keep" end;
["effect", "units", "layers", "change", "components", "m", "keep", "pool", "explained", "n",
 "top1", "low", "high", "top5", "agreement", "cosine"],
(.[] | [.effect, .units, (.layers // [] | map(tostring) | join(" ")), change, .components, .m, .keep, .pool, .explained, .n,
 .top1.value, .top1.low, .top1.high, .top5.value, .agreement, .cosine]) | @csv
