# A build of 13 derivations in three levels: eight sources, four libraries of
# two sources each with three outputs, and a program of all libraries.
let
  name = "@name@";
  work = "sleep @seconds@";

  build = arguments: derivation (arguments // {
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-euc" arguments.script ];
    PATH = "/usr/bin:/bin";
  });

  source = n: build {
    name = "${name}-source-${n}";
    script = ''
      echo "generating source ${n}"
      ${work}
      echo "source ${n}" > $out
    '';
  };

  library = n: sources: build {
    name = "${name}-library-${n}";
    outputs = [ "out" "dev" "doc" ];
    inherit sources;
    script = ''
      echo "compiling library ${n}"
      ${work}
      mkdir $out $dev $doc
      cat $sources > $out/lib
      echo "header of library ${n}" > $dev/header
      echo "manual of library ${n}" > $doc/manual
    '';
  };

  libraries = [
    (library "a" [ (source "1") (source "2") ])
    (library "b" [ (source "3") (source "4") ])
    (library "c" [ (source "5") (source "6") ])
    (library "d" [ (source "7") (source "8") ])
  ];
in
build {
  inherit name;
  headers = map (l: "${l.dev}/header") libraries;
  libraries = map (l: "${l.out}/lib") libraries;
  script = ''
    echo "linking"
    ${work}
    cat $headers > /dev/null
    cat $libraries > $out
  '';
}
