//! Plots as SVG text, for the documents. They are readable on light and dark backgrounds.

use std::fmt::Write as _;

/// Height of a row of a dot plot, and of a line of text.
const ROW: f64 = 20.0;
/// Width of the texts at the left.
const LABELS: f64 = 70.0;
const PANEL: f64 = 300.0;
const GAP: f64 = 50.0;
const TOP: f64 = 50.0;
const HEIGHT: f64 = 260.0;

/// The style of all plots. The colours contrast with white and with black: the page that shows a
/// plot may be dark although its reader's system is not.
const STYLE: &str = "\
<style>
  text { font: 12px sans-serif; fill: #6e7781 }
  .axis { stroke: #8c959f; stroke-width: 1; fill: none }
  .c0 { fill: #2f81f7; stroke: #2f81f7 }
  .c1 { fill: #d4722a; stroke: #d4722a }
  .dot { fill-opacity: 0.6; stroke-width: 0 }
  .line { fill: none; stroke-width: 1.5 }
  .beyond { fill: none; stroke-width: 1.5 }
</style>
";

/// A dot plot: rows with a name, and some panels beside each other that share the rows. Values are
/// ratios around 1.
pub struct DotPlot<'a> {
    pub title: &'a str,
    pub panels: Vec<&'a str>,
    /// The name of a row, and its values in each panel.
    pub rows: Vec<(&'a str, Vec<Vec<f64>>)>,
    /// The axis reaches from `1 - reach` to `1 + reach`. A value beyond it is a ring at its end.
    pub reach: f64,
}

impl DotPlot<'_> {
    pub fn svg(&self) -> String {
        let width = LABELS + self.panels.len() as f64 * (PANEL + GAP);
        let bottom = TOP + self.rows.len() as f64 * ROW;
        let mut svg = open(width, bottom + 30.0, self.title);
        for (number, panel) in self.panels.iter().enumerate() {
            let left = LABELS + number as f64 * (PANEL + GAP);
            let x = |ratio: f64| left + PANEL * (ratio - 1.0 + self.reach) / (2.0 * self.reach);
            text(&mut svg, left + PANEL / 2.0, TOP - 10.0, "middle", panel);
            for tick in [1.0 - self.reach, 1.0, 1.0 + self.reach] {
                line(&mut svg, &[(x(tick), TOP), (x(tick), bottom)], "axis");
                text(&mut svg, x(tick), bottom + 18.0, "middle", &format!("{tick:.2}"));
            }
            for (row, (_, values)) in self.rows.iter().enumerate() {
                let y = TOP + (row as f64 + 0.5) * ROW;
                for value in values.get(number).into_iter().flatten() {
                    let is_beyond = (value - 1.0).abs() > self.reach;
                    let class = if is_beyond { "c1 beyond" } else { "c0 dot" };
                    circle(&mut svg, x(value.clamp(1.0 - self.reach, 1.0 + self.reach)), y, class);
                }
            }
        }
        for (row, (name, _)) in self.rows.iter().enumerate() {
            text(&mut svg, LABELS - 15.0, TOP + (row as f64 + 0.5) * ROW + 4.0, "end", name);
        }
        svg + "</svg>\n"
    }
}

/// Lines over some places on the horizontal axis, which are equally far apart.
pub struct LinePlot<'a> {
    pub title: &'a str,
    pub x_title: &'a str,
    pub places: Vec<String>,
    /// At most two, each with one value for each place.
    pub lines: Vec<Series<'a>>,
}

/// A line with its name, and single values that belong to it: place and value.
pub struct Series<'a> {
    pub name: &'a str,
    pub values: Vec<f64>,
    pub marks: Vec<(usize, f64)>,
}

impl LinePlot<'_> {
    pub fn svg(&self) -> String {
        let width = LABELS + 2.0 * PANEL;
        let bottom = TOP + HEIGHT;
        let all =
            self.lines.iter().flat_map(|line| line.values.iter().chain(line.marks.iter().map(|(_, y)| y)));
        let quarter = (all.copied().fold(1.0, f64::max) / 4.0).ceil();
        let most = 4.0 * quarter;
        let x = |place: usize| LABELS + 20.0 + (2.0 * PANEL - 60.0) * place as f64 / self.last_place();
        let y = |value: f64| bottom - HEIGHT * value / most;
        let mut svg = open(width, bottom + 45.0, self.title);
        line(&mut svg, &[(LABELS, TOP), (LABELS, bottom), (width - 20.0, bottom)], "axis");
        for tick in 0..=4 {
            let value = quarter * f64::from(tick);
            text(&mut svg, LABELS - 8.0, y(value) + 4.0, "end", &format!("{value:.0}"));
        }
        for (place, name) in self.places.iter().enumerate() {
            text(&mut svg, x(place), bottom + 18.0, "middle", name);
        }
        text(&mut svg, LABELS + PANEL, bottom + 38.0, "middle", self.x_title);
        for (number, Series { name, values, marks }) in self.lines.iter().enumerate() {
            let points: Vec<_> =
                values.iter().enumerate().map(|(place, value)| (x(place), y(*value))).collect();
            line(&mut svg, &points, &format!("c{number} line"));
            for (place, value) in marks {
                circle(&mut svg, x(*place), y(*value), &format!("c{number}"));
            }
            let legend = TOP + number as f64 * ROW;
            circle(&mut svg, width - 240.0, legend - 4.0, &format!("c{number}"));
            text(&mut svg, width - 230.0, legend, "start", name);
        }
        svg + "</svg>\n"
    }

    fn last_place(&self) -> f64 {
        self.places.len().saturating_sub(1).max(1) as f64
    }
}

fn open(width: f64, height: f64, title: &str) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\">\n"
    );
    let _ = writeln!(svg, "<title>{}</title>", escaped(title));
    svg += STYLE;
    text(&mut svg, width / 2.0, 18.0, "middle", title);
    svg
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let text = escaped(text);
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>");
}

fn circle(svg: &mut String, x: f64, y: f64, class: &str) {
    let _ = writeln!(svg, "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>");
}

fn line(svg: &mut String, points: &[(f64, f64)], class: &str) {
    let points: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = writeln!(svg, "<polyline class=\"{class}\" points=\"{}\"/>", points.join(" "));
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the values of an attribute of the elements with this class.
    fn attributes<'a>(svg: &'a str, class: &str, attribute: &str) -> Vec<&'a str> {
        let elements = svg.lines().filter(|line| line.contains(&format!("class=\"{class}\"")));
        let start = format!(" {attribute}=\"");
        elements.map(|line| line.split(&start).nth(1).unwrap().split('"').next().unwrap()).collect()
    }

    #[test]
    fn dots_stand_at_their_ratio() {
        let rows = vec![("rr", vec![vec![1.0, 0.9], vec![1.05, 3.0]])];
        let plot = DotPlot { title: "a & b", panels: vec!["equal", "unequal"], rows, reach: 0.1 };
        let svg = plot.svg();
        // The middle and the left end of the first panel, three quarters of the second one.
        assert_eq!(attributes(&svg, "c0 dot", "cx"), ["220.0", "70.0", "645.0"]);
        assert_eq!(attributes(&svg, "c1 beyond", "cx"), ["720.0"], "beyond the axis");
        assert!(svg.contains("<title>a &amp; b</title>") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    }

    #[test]
    fn lines_reach_from_the_greatest_value_to_zero() {
        let line = Series { name: "n", values: vec![4.0, 0.0], marks: vec![(1, 2.0)] };
        let places = vec!["1".to_owned(), "2".to_owned()];
        let svg = LinePlot { title: "t", x_title: "x", places, lines: vec![line] }.svg();
        assert_eq!(attributes(&svg, "c0 line", "points"), ["90.0,50.0 630.0,310.0"]);
        assert_eq!(attributes(&svg, "c0", "cy")[0], "180.0");
    }
}
