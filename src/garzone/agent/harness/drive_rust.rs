// Calls functions of a translated file with recorded arguments; the calls are written in by translation/rust.py.
// To $GARZONE_OUT, as JSON: {"results": {name: [{"result": ...} | {"throws": text}, ...]}}.
mod translated;

trait Json {
    fn json(&self, out: &mut String);
}
impl Json for i64 {
    fn json(&self, out: &mut String) {
        out.push_str(&self.to_string());
    }
}
impl Json for f64 {
    fn json(&self, out: &mut String) {
        if self.is_finite() {
            out.push_str(&format!("{:e}", self));
        } else {
            out.push_str(&format!("{{\"special\": \"{}\"}}", self));
        }
    }
}
impl Json for bool {
    fn json(&self, out: &mut String) {
        out.push_str(if *self { "true" } else { "false" });
    }
}
impl Json for String {
    fn json(&self, out: &mut String) {
        out.push('"');
        for c in self.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
                c => out.push(c),
            }
        }
        out.push('"');
    }
}
impl<T: Json> Json for Vec<T> {
    fn json(&self, out: &mut String) {
        out.push('[');
        for (number, item) in self.iter().enumerate() {
            if number > 0 {
                out.push(',');
            }
            item.json(out);
        }
        out.push(']');
    }
}
impl<T: Json> Json for Option<T> {
    fn json(&self, out: &mut String) {
        match self {
            Some(value) => value.json(out),
            None => out.push_str("null"),
        }
    }
}
impl<T: Json> Json for std::collections::HashMap<String, T> {
    fn json(&self, out: &mut String) {
        out.push('{');
        for (number, (key, item)) in self.iter().enumerate() {
            if number > 0 {
                out.push(',');
            }
            key.json(out);
            out.push(':');
            item.json(out);
        }
        out.push('}');
    }
}

fn open(out: &mut String, name: &str) {
    if !out.is_empty() {
        out.push_str("],");
    }
    out.push_str(&format!("\"{}\": [", name));
}

fn case<T: Json>(out: &mut String, call: impl FnOnce() -> T + std::panic::UnwindSafe) {
    if !out.ends_with('[') {
        out.push(',');
    }
    match std::panic::catch_unwind(call) {
        Ok(value) => {
            out.push_str("{\"result\": ");
            value.json(out);
            out.push('}');
        }
        Err(_) => out.push_str("{\"throws\": \"panic\"}"),
    }
}

fn main() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut out = String::new();
// CALLS
    if !out.is_empty() {
        out.push(']');
    }
    std::fs::write(std::env::var("GARZONE_OUT").unwrap(), format!("{{\"results\": {{{}}}}}", out)).unwrap();
}
