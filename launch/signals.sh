# shellcheck shell=bash
# signals.sh - sourced, without arguments, by scripts that trap USR1, USR2, INT and TERM: before they do, and once they
# have standard streams.
#
# bash cannot trap what was ignored when it started: whoever started it may have any of them ignored, and sh has INT for
# what ends in &. Then the script begins anew with their default actions, in the same process and so at most once;
# where env is older than coreutils 8.31, or there is no script but bash's -c, it goes on as it is. HUP stays ignored,
# as for a rank (src/base/signals.c): nohup means it.
mask=$((1 << 1 | 1 << 9 | 1 << 11 | 1 << 14)) # signal n is bit n - 1
defaults=--default-signal=INT,USR1,USR2,TERM
if (((16#0$(sed -n 's/^SigIgn:[[:space:]]*//p' /proc/self/status 2>/dev/null) & mask) != 0)) &&
    [[ -f $0 && ${DTRAIN_ANEW-} != "$$" ]] && env "$defaults" true 2>/dev/null; then
    DTRAIN_ANEW=$$ exec env "$defaults" "$BASH" "$0" "$@"
fi
unset mask defaults DTRAIN_ANEW
