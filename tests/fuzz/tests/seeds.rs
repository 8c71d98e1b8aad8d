//! The fuzz targets over their seeds, as any other test: inputs that once broke something stay mended, and a target that has rotted
//! is seen without fuzzing.

use std::fs;
use std::path::Path;

use hikyaku_fuzz::TARGETS;

// one test: the targets measure what the whole program allocates
#[test]
fn every_target_holds_on_its_seeds() -> std::io::Result<()> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    for (name, target) in TARGETS {
        let mut inputs: Vec<Vec<u8>> = fs::read_dir(seeds.join(name))?
            .map(|entry| fs::read(entry?.path()))
            .collect::<Result<_, _>>()?;
        assert!(!inputs.is_empty(), "{name} has no seeds");
        // and what a little spoils of them
        let whole = inputs.len();
        for index in 0..whole {
            for at in (0..inputs[index].len()).step_by(7) {
                let mut spoilt = inputs[index].clone();
                spoilt[at] ^= 1;
                inputs.push(spoilt);
                inputs.push(inputs[index][..at].to_vec());
            }
        }
        for input in &inputs {
            target(input);
        }
        println!("{name}: {whole} seeds, {} inputs", inputs.len());
    }
    Ok(())
}

#[test]
fn every_target_has_its_program() -> std::io::Result<()> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bin");
    let mut programs = Vec::new();
    for entry in fs::read_dir(sources)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        programs.push(name.trim_end_matches(".rs").to_owned());
    }
    programs.sort_unstable();
    let targets: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(programs, targets);
    Ok(())
}
