//! Plots, as SVG.

use std::ops::Range;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

/// Width and height of a plot.
const SIZE: (u32, u32) = (900, 420);
/// For headings, and for all else.
const FONTS: [(&str, u32); 2] = [("sans-serif", 18), ("sans-serif", 13)];
/// Colours of parts and lines, in their order; they can be told apart by most people who see few.
const COLOURS: [RGBColor; 9] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
    RGBColor(240, 228, 66),
    RGBColor(110, 110, 110),
    RGBColor(60, 60, 140),
];

/// A line of a plot.
pub(crate) type Series = (String, Vec<(f64, f64)>);

/// Names of a plot and its axes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names<'a> {
    pub(crate) title: &'a str,
    pub(crate) x: &'a str,
    pub(crate) y: &'a str,
}

/// How the vertical axis counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    Linear,
    /// Each step ten times the one before; values of zero and less are left out.
    Logarithmic,
}

/// Bars of parts, from the top down.
pub(crate) fn stacked(names: Names<'_>, parts: &[&str], bars: &[(String, Vec<f64>)]) -> Result<String> {
    let longest = bars.iter().map(|(_, values)| values.iter().sum::<f64>()).fold(0.0, f64::max);
    let height = SIZE.1.max(110 + 26 * u32::try_from(bars.len())?);
    drawn((SIZE.0, height), |area| {
        let count = bars.len() as f64;
        let mut chart = ChartBuilder::on(area)
            .caption(names.title, FONTS[0])
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(250)
            .build_cartesian_2d(0.0..above(longest), 0.0..count)?;
        let label = |y: &f64| {
            let index = count - 0.5 - y;
            let bar = (index.fract().abs() < 1e-6 && index >= 0.0).then(|| bars.get(index.round() as usize));
            bar.flatten().map(|(name, _)| name.clone()).unwrap_or_default()
        };
        chart
            .configure_mesh()
            .disable_y_mesh()
            .max_light_lines(0)
            .x_desc(names.x)
            .y_labels(2 * bars.len() + 1)
            .y_label_formatter(&label)
            .label_style(FONTS[1])
            .draw()?;
        for (index, part) in parts.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let rectangle = |(row, (_, values)): (usize, &(String, Vec<f64>))| {
                let start: f64 = values[..index].iter().sum();
                let top = count - row as f64 - 0.15;
                Rectangle::new([(start, top - 0.7), (start + values[index], top)], colour.filled())
            };
            chart
                .draw_series(bars.iter().enumerate().map(rectangle))?
                .label(*part)
                .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled()));
        }
        legend(&mut chart, SeriesLabelPosition::LowerRight)
    })
}

/// Lines.
pub(crate) fn lines(names: Names<'_>, scale: Scale, series: &[Series]) -> Result<String> {
    let placed: Vec<Series> =
        series.iter().map(|(name, points)| (name.clone(), place(points, scale))).collect();
    let points = || placed.iter().flat_map(|(_, points)| points);
    let x = span(points().map(|point| point.0));
    let y = match scale {
        Scale::Linear => 0.0..above(points().map(|point| point.1).fold(0.0, f64::max)),
        Scale::Logarithmic => {
            span(points().map(|point| point.1.floor()).chain(points().map(|point| point.1.ceil())))
        }
    };
    // One for each power of ten.
    let labels = if scale == Scale::Linear { 10 } else { (y.end - y.start) as usize + 1 };
    drawn(SIZE, |area| {
        let mut chart = ChartBuilder::on(area)
            .caption(names.title, FONTS[0])
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d(x.clone(), y.clone())?;
        let label = |y: &f64| match scale {
            Scale::Linear => number(*y),
            Scale::Logarithmic => number(10_f64.powf(*y)),
        };
        chart
            .configure_mesh()
            .max_light_lines(0)
            .x_desc(names.x)
            .y_desc(names.y)
            .y_labels(labels)
            .x_label_formatter(&|x| number(*x))
            .y_label_formatter(&label)
            .label_style(FONTS[1])
            .draw()?;
        for (index, (name, points)) in placed.iter().enumerate() {
            let style = COLOURS[index % COLOURS.len()].stroke_width(2);
            chart
                .draw_series(LineSeries::new(points.iter().copied(), style).point_size(marks(points)))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
        }
        let free = if scale == Scale::Linear {
            SeriesLabelPosition::UpperRight
        } else {
            SeriesLabelPosition::MiddleRight
        };
        legend(&mut chart, free)
    })
}

/// Points that are few are marked.
fn marks(points: &[(f64, f64)]) -> u32 {
    if points.len() > 20 { 0 } else { 3 }
}

/// Points as they are drawn.
fn place(points: &[(f64, f64)], scale: Scale) -> Vec<(f64, f64)> {
    match scale {
        Scale::Linear => points.to_vec(),
        Scale::Logarithmic => {
            points.iter().filter(|point| point.1 > 0.0).map(|&(x, y)| (x, y.log10())).collect()
        }
    }
}

/// From the least to the most, and wider than nothing.
fn span(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (least, most) = values
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), value| (least.min(value), most.max(value)));
    if least < most {
        least..most
    } else if least.is_finite() {
        least..least + 1.0
    } else {
        0.0..1.0
    }
}

/// A little above the most.
fn above(most: f64) -> f64 {
    if most > 0.0 { most * 1.05 } else { 1.0 }
}

/// A number without digits that tell nothing.
fn number(value: f64) -> String {
    let digits = if value.abs() >= 10.0 || value.fract().abs() < 1e-9 {
        0
    } else if value.abs() >= 1.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$}")
}

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type DrawResult = Result<(), Box<dyn std::error::Error>>;

fn legend<'a, 'b: 'a>(chart: &mut Chart<'a, 'b>, position: SeriesLabelPosition) -> DrawResult {
    chart
        .configure_series_labels()
        .position(position)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .label_font(FONTS[1])
        .draw()?;
    Ok(())
}

fn drawn(
    size: (u32, u32),
    draw: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> DrawResult,
) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let done = area.fill(&WHITE).map_err(Into::into).and_then(|()| draw(&area));
        done.and_then(|()| area.present().map_err(Into::into))
            .map_err(|error| anyhow!("cannot draw: {error}"))?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: Names<'_> = Names { title: "Title <1>", x: "across", y: "up" };

    #[test]
    fn bars_have_their_names_and_their_parts() {
        let bars = vec![("first".to_owned(), vec![1.0, 2.0]), ("second".to_owned(), vec![3.0, 4.0])];
        let svg = stacked(NAMES, &["freeze", "restore"], &bars).unwrap();
        for told in ["Title &lt;1&gt;", "across", "first", "second", "freeze", "restore"] {
            assert!(svg.contains(told), "no {told} in {svg}");
        }
    }

    #[test]
    fn lines_have_names_and_a_place_for_zero() {
        let series = vec![("global".to_owned(), vec![(1.0, 0.0), (2.0, 10.0)]), ("empty".to_owned(), vec![])];
        for scale in [Scale::Linear, Scale::Logarithmic] {
            let svg = lines(NAMES, scale, &series).unwrap();
            assert!(svg.contains("global") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn nothing_can_be_drawn() {
        assert!(stacked(NAMES, &[], &[]).unwrap().starts_with("<svg"));
        assert!(lines(NAMES, Scale::Logarithmic, &[]).unwrap().starts_with("<svg"));
    }
}
