"""python -m diffusion_utils train|sample|evaluate|figures|export|download"""

import sys
import warnings

from diffusion_utils.commands import main

if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal without Unicode gets question marks, not a traceback
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # in one line, as errors are
    sys.exit(main(sys.argv[1:]))
