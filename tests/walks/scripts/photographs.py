"""A folder of photographs, as a person has one: `python photographs.py FOLDER`."""

import sys
from pathlib import Path

from tools.photographs import write_photographs

write_photographs(Path(sys.argv[1]))
