"""Before any test imports the host."""

import clit_basicsr  # noqa: F401  makes `import basicsr` work
