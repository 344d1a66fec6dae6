# Sourced: installs the foreign clients below target/ unless they are there, and names them.
tools="${CARGO_TARGET_DIR:-target}/ci-tools"
mkdir -p "$tools"
tools=$(cd "$tools" && pwd)

# A stamp holds what was asked for, so that a changed version installs anew and the same one does not.
install_once() { # NAME REQUIREMENTS COMMAND…
  local stamp="$tools/$1.stamp" wanted="$2"
  shift 2
  cmp --silent "$wanted" "$stamp" && return
  rm -f "$stamp"
  "$@"
  cp "$wanted" "$stamp"
}

install_npm() {
  mkdir -p "$tools/npm"
  cp .ci/package.json "$tools/npm/"
  # No install scripts: each package brings its program with it. The engines that npm warns about are
  # those of its own Node; the one installed here runs the tools.
  npm install --prefix "$tools/npm" --ignore-scripts --no-package-lock --no-audit --no-fund --loglevel error
}

install_python() {
  python3 -m venv --clear "$tools/python"
  "$tools/python/bin/pip" install --quiet --disable-pip-version-check --requirement .ci/requirements.txt
}

install_once npm .ci/package.json install_npm
install_once python .ci/requirements.txt install_python

case "$(uname -m)" in
  x86_64) node=x64 buf=x64 ;;
  aarch64) node=arm64 buf=aarch64 ;;
  *) echo "no Node or buf is named here for $(uname -m)" >&2; exit 1 ;;
esac
modules="$tools/npm/node_modules"
export PATH="$modules/node-linux-$node/bin:$modules/@bufbuild/buf-linux-$buf/bin:$modules/.bin:$tools/python/bin:$PATH"
