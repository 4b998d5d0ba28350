"""`python -m ldm_vae`, the same as `ldm-vae`."""

from ldm_vae.cli.app import main

main()
