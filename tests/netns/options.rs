//! What libtest takes on its command line, as far as our runners have a use for it; the rest is accepted.

#[derive(Debug)]
pub struct Options {
    filters: Vec<String>,
    except: Vec<String>,
    exact: bool,
    pub list: bool,
    pub threads: usize,
    pub repeat: usize,
}

impl Options {
    /// Those of this process. `threads`: how many tests run at a time unless it is said.
    pub fn parse(threads: usize) -> Options {
        let mut o = Options {
            filters: vec![],
            except: vec![],
            exact: false,
            list: false,
            threads,
            repeat: 1,
        };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let (name, inline) = arg
                .split_once('=')
                .map_or((arg.as_str(), None), |(n, v)| (n, Some(v.to_owned())));
            let mut value = || inline.clone().or_else(|| args.next()).unwrap_or_default();
            match name {
                "--exact" => o.exact = true,
                "--list" => o.list = true,
                "--skip" => o.except.push(value()),
                "--test-threads" => o.threads = value().parse().unwrap_or(threads),
                "--repeat" => o.repeat = value().parse().unwrap_or(1),
                "--format" | "--color" | "--logfile" | "-Z" => drop(value()),
                flag if flag.starts_with('-') => {} // --nocapture, --show-output, -q: nothing to choose here
                filter => o.filters.push(filter.to_owned()),
            }
        }
        o
    }

    /// Is the test of this name to run?
    pub fn wants(&self, name: &str) -> bool {
        let hit = |f: &String| {
            if self.exact {
                name == f
            } else {
                name.contains(f.as_str())
            }
        };
        (self.filters.is_empty() || self.filters.iter().any(hit)) && !self.except.iter().any(hit)
    }
}
