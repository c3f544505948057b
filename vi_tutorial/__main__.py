"""``python -m vi_tutorial`` is ``vi-tutorial``."""

from vi_tutorial.cli import app

if __name__ == "__main__":
    app(prog_name="vi-tutorial")
