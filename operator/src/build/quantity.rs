//! Quantities, as Kubernetes writes them: `500m`, `2`, `1.5Gi`, `100M`.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Suffixes and what they stand for. (`m` is a thousandth.)
const SUFFIXES: [(&str, f64); 14] = [
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("Pi", 1_125_899_906_842_624.0),
    ("Ei", 1_152_921_504_606_846_976.0),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("E", 1e18),
    ("m", 1e-3),
    ("", 1.0),
];

/// As the API takes it.
pub(crate) fn quantity(value: &IntOrString) -> Quantity {
    Quantity(match value {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(text) => text.clone(),
    })
}

/// Says what is wrong with one, if something is.
pub(crate) fn check(value: &IntOrString) -> Result<(), String> {
    let text = quantity(value).0;
    match number(&text) {
        Some(number) if number >= 0.0 => Ok(()),
        _ => Err(format!("`{text}` is not a quantity: write a number, or one with a suffix, such as 500m, 2 or 4Gi")),
    }
}

/// What it comes to, in bytes (or cores).
pub(crate) fn number(text: &str) -> Option<f64> {
    let (suffix, factor) = SUFFIXES.iter().find(|(suffix, _)| text.ends_with(suffix))?;
    let digits = text.strip_suffix(suffix)?;
    // `parse` takes `inf` and `nan`, too, and so does Kubernetes take exponents.
    let is_plain = digits.chars().all(|character| character.is_ascii_digit() || "+-.eE".contains(character));
    if !is_plain {
        return None;
    }
    digits.parse::<f64>().ok().map(|number| number * factor).filter(|number| number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubernetes_writes_is_understood() {
        let cases = [
            ("2", 2.0),
            ("500m", 0.5),
            ("1.5Gi", 1_610_612_736.0),
            ("100M", 1e8),
            ("128974848", 128_974_848.0),
            ("1e3", 1e3),
            ("64Ki", 65_536.0),
        ];
        for (text, expected) in cases {
            assert_eq!(number(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused_with_examples() {
        for text in ["", "4GB", "lots", "inf", "nan", "4 Gi", "-1", "Gi"] {
            let error = check(&IntOrString::String(text.to_owned())).unwrap_err();
            assert!(error.contains("such as 500m, 2 or 4Gi"), "{text}: {error}");
        }
        assert_eq!(check(&IntOrString::Int(2)), Ok(()));
    }
}
