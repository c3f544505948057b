"""How Sphinx builds the site from the pages that tools/website.py lays out; nothing is executed, nothing is fetched."""

from importlib.metadata import version as installed

from docutils import nodes

project = "From VI to VAEs"
author = "The vi_tutorial authors"
copyright = "the vi_tutorial authors. Text and figures CC BY 4.0, code MIT"
version = release = installed("vi_tutorial")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinxcontrib.bibtex",
    "sphinx_copybutton",
]

nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = "Show code"
myst_enable_extensions = ["amsmath", "attrs_block", "colon_fence", "dollarmath", "html_image"]
myst_heading_anchors = 3
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "unsrt"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
add_module_names = False

mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {
    "tex": {"tagSide": "right", "inlineMath": [["\\(", "\\)"]]},
    "chtml": {"scale": 1.0},
    "options": {"enableMenu": False},
}

html_theme = "furo"
html_title = "From Variational Inference to Variational Autoencoders"
smartquotes = False
exclude_patterns = ["downloads"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["filter.js"]
html_copy_source = False
html_domain_indices = False
html_show_sphinx = False
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {"color-brand-primary": "#1d5a96", "color-brand-content": "#1d5a96"},
    "dark_css_variables": {"color-brand-primary": "#8ec5ff", "color-brand-content": "#8ec5ff"},
}


def numbered_as_written(app, doctree, docname):
    """Sphinx would put a formula of several lines into an environment in which TeX allows no number of its own."""
    for node in doctree.findall(nodes.math_block):
        if r"\tag" in node.astext():
            node["no-wrap"] = node["nowrap"] = True
            node.children = [nodes.Text(rf"\[{node.astext()}\]")]


def setup(app):
    app.connect("doctree-resolved", numbered_as_written)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
