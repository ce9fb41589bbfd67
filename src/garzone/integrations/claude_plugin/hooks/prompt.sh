#!/bin/sh
# `/garzone ...` is done here and never reaches the model. Every other prompt costs the two milliseconds of this script,
# unless `garzone connect claude-code --suggest` switched the suggestions on.
suggest=no
told=$(cat)
case $told in
  *'"prompt":"/garzone'*) printf '%s' "$told" | garzone hook ;;
  *) if [ "$suggest" = yes ]; then printf '%s' "$told" | garzone hook --suggest; fi ;;
esac
exit 0
