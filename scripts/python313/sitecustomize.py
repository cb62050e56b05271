"""For Python 3.13 and later: on PYTHONPATH while pip builds BasicSR 1.4.2, whose setup.py fails there without it.

    PYTHONPATH=$PWD/scripts/python313 pip install --no-build-isolation -r requirements.txt

Its get_version() has exec() set __version__ and returns locals()['__version__']: a KeyError, since what exec() sets in
a function is lost (PEP 667). Python imports this file when it starts, in pip and in the builds that pip starts, and
there exec() sets the caller's variables as it did until 3.12. BasicSR stays as it is, and nothing of this is installed.
"""

import builtins
import sys

python_exec = exec


def exec_for_caller(source, /, globals=None, locals=None, **closure):
    caller = sys._getframe(1)
    if locals is None:
        locals = caller.f_locals if globals is None else globals
    python_exec(source, caller.f_globals if globals is None else globals, locals, **closure)


builtins.exec = exec_for_caller
