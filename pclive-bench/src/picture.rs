//! Plots as pictures for what cannot show SVG.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree};

/// Pixels for each unit of a plot.
const SHARPNESS: f32 = 2.0;

/// Draws plots with the fonts of this machine.
pub(crate) struct Painter {
    options: Options<'static>,
}

impl Painter {
    /// # Errors
    /// When no font is installed.
    pub(crate) fn new() -> Result<Self> {
        let mut options = Options { font_family: "DejaVu Sans".into(), ..Options::default() };
        let fonts = Arc::make_mut(&mut options.fontdb);
        fonts.load_system_fonts();
        fonts.set_sans_serif_family("DejaVu Sans");
        ensure!(!fonts.is_empty(), "no font is installed (on Debian: apt-get install fonts-dejavu-core)");
        Ok(Self { options })
    }

    /// A plot as PNG.
    pub(crate) fn png(&self, svg: &str) -> Result<Vec<u8>> {
        let tree = Tree::from_str(svg, &self.options).context("cannot read the plot")?;
        let size = tree.size().to_int_size().scale_by(SHARPNESS).context("the plot has no size")?;
        let mut picture = Pixmap::new(size.width(), size.height()).context("the plot has no size")?;
        resvg::render(&tree, Transform::from_scale(SHARPNESS, SHARPNESS), &mut picture.as_mut());
        picture.encode_png().context("cannot write the picture")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_drawn_twice_as_large_as_it_is_told() {
        let plot = |text: &str| {
            format!(
                "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"90\" height=\"40\">\
                 <text x=\"5\" y=\"30\" font-family=\"sans-serif\" font-size=\"20\">{text}</text></svg>"
            )
        };
        let painter = Painter::new().unwrap();
        let (blank, full) = (painter.png(&plot("")).unwrap(), painter.png(&plot("downtime")).unwrap());
        assert_eq!(full[..8], *b"\x89PNG\r\n\x1a\n");
        // Width and height are the first words of the header.
        assert_eq!(full[16..24], [0, 0, 0, 180, 0, 0, 0, 80]);
        assert!(full.len() > blank.len() + 100, "{} and {} bytes", full.len(), blank.len());
        assert!(painter.png("no plot").is_err());
    }
}
